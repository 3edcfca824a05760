"""``camlake train``: list → label → split → train → weights with their card."""

import math
from collections.abc import Sequence

from jobs.console import Screen, main, verb
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.train.checkpoints import Epoch, Progress
from pipeline.graph.train.controller import fit
from pipeline.graph.train.plan import first_weights, make_job, plan_layout, training_files
from pipeline.graph.train.trackers import tracking
from pipeline.graph.train.worker import epoch_order
from pipeline.models import registry
from pipeline.storage.filesystems import canonical_url, connect, safe_url
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.truth.labelled_images import LabelledImages, read_label_names, read_labelled, split_by_hash
from pipeline.storage.truth.truth import read_truth
from schemas.errors import CamlakeError, RejectedShareError, UsageError
from schemas.train import TrainConfig


def run(config: TrainConfig, screen: Screen) -> None:
    """Train, or go on with a training that stopped, and say what it came to.

    Raises CamlakeError where the loss is lost, and RejectedShareError where more images than allowed could not be used.
    """
    train, val = labelled_images(config, screen)
    progress = learn(config, train, val, screen)
    last = progress.history[-1]
    out = safe_url(config.out).rstrip("/")
    if not math.isfinite(last["train_loss"]):
        so_far = f"; the best weights so far are {out}/best.safetensors" if progress.best else ""
        raise CamlakeError(
            f"the loss of epoch {len(progress.history)} is no finite number; try a smaller --lr, with another"
            f" --out{so_far}"
        )
    best = progress.best or last
    screen.result(f"best of {len(progress.history)} epochs: {told(best)}", **best)
    way = " --method regress" if config.supervision == "boxes" else ""
    screen.result(f"use it:  camlake annotate IMAGES --out LABELS --weights {out}/best.safetensors{way}")
    refuse_rejected_share(config, progress, len(train) + len(val))


def labelled_images(config: TrainConfig, screen: Screen) -> tuple[LabelledImages, LabelledImages]:
    """Return the images to train on and those to validate with, which may be none.

    Raises UsageError where a class has no image to train on, and as ``read_labelled`` does.
    """
    if canonical_url(config.out).startswith(canonical_url(config.input).rstrip("/") + "/"):
        raise UsageError(f"--out {safe_url(config.out)}: lies inside INPUT, where it would be a class")
    names: Sequence[str] | None = read_label_names(config.labels, config) if config.labels else None
    own_boxes = config.iou if config.supervision == "boxes" and not config.boxes else None
    every = read_labelled(config.input, config, names, boxes=own_boxes)
    refuse_missing(every, f"{safe_url(config.input)}")
    if config.label_smoothing and every.multi_label:
        smoothing = f"--label-smoothing {config.label_smoothing:g}"
        raise UsageError(f"{smoothing}: allowed: 0, as INPUT has several labels an image")
    train, val = split_by_hash(every, 0.0 if config.val else config.val_share)
    if config.val:
        val = read_labelled(config.val, config, train, "--val", boxes=own_boxes)
    refuse_missing(train, f"--val-share {config.val_share:g}: in what is left for training")
    if config.supervision == "boxes":
        train, val = with_true_boxes(config, train, val)
        screen.say(f"{train.n_boxes} boxes to learn from, {val.n_boxes} to validate with")
    screen.say(f"{len(train)} images of {len(train.labels)} classes to train on, {len(val)} to validate with")
    without = val.missing()
    if len(val) and without:
        screen.say(f"note: no validation image of {', '.join(without[:5])}{' and others' * (len(without) > 5)}")
    return train, val


def with_true_boxes(
    config: TrainConfig, train: LabelledImages, val: LabelledImages
) -> tuple[LabelledImages, LabelledImages]:
    """Return both with the boxes there are; raises UsageError without any, and for several labels an image."""
    if train.multi_label:
        raise UsageError("--supervision boxes: a box belongs to an image's one label, and these have several")
    if config.boxes:
        truth = read_truth(config.boxes, config)
        train, val = train.with_boxes_of(truth, config.iou), val.with_boxes_of(truth, config.iou)
    if not train.n_boxes:
        source = f"--boxes {safe_url(config.boxes)}" if config.boxes else f"INPUT {safe_url(config.input)}"
        raise UsageError(
            f"--supervision boxes: {source} has no box for any of the {len(train)} training images and its class;"
            " allowed: --boxes FILE, or an INPUT with columns xmin, ymin, xmax and ymax"
        )
    return train, val


def refuse_missing(images: LabelledImages, where: str) -> None:
    """Raise UsageError where a class has no image."""
    missing = images.missing()
    if missing or len(images.labels) < 1 + (not images.multi_label):
        problem = f"no image of {missing[0]!r}" if missing else f"one class, {images.labels[0]!r}, is nothing to learn"
        raise UsageError(f"{where}: {problem}; allowed: images of every class, and two classes or more")


def learn(config: TrainConfig, train: LabelledImages, val: LabelledImages, screen: Screen) -> Progress:
    """Train under the output's lease and return how it went; a training that has ended is only looked up."""
    files = training_files(config, train, val)
    fs, root = connect(files.out, config)
    with Lease.acquire(fs, root, new_run_id()) as lease:
        progress, _ = files.resume()
        if progress.ended(config.epochs, config.patience):
            screen.say("this training has ended already")
            return progress
        if progress.history:
            screen.say(f"going on after epoch {len(progress.history)}")
        architecture, start = first_weights(config, train)
        screen.say(f"{registry.get(config.model).in_words(architecture)} from {start.source}; starting Ray")
        with ray_cluster(config.address) as machine:
            layout = plan_layout(config, machine)
            job = make_job(config, train, val, architecture, start, layout, files, lease.generation)
            processes = "1 process" if layout.workers == 1 else f"{layout.workers} processes"
            screen.say(f"{processes} on {'GPU' if layout.cuda else 'CPU'}")
            images = epoch_order(len(train), config.batch_size, config.seed, 0).size + len(val)
            n_left = (config.epochs - len(progress.history)) * images
            with (
                tracking(files.out, config, files.settings, progress.history, screen.say) as track,
                screen.progress("training", n_left) as advance,
            ):

                def heard(epoch: Epoch) -> None:
                    screen.say(f"epoch {told(epoch)}", **epoch)
                    track(epoch)

                return fit(job, start.state, train, val, advance, heard, screen.say)


def told(epoch: Epoch) -> str:
    """Return an epoch's figures in words."""
    figures = [f"{name.replace('_', ' ')} {epoch[name]:.3f}" for name in _FIGURES if name in epoch]
    return f"{epoch['epoch']:g}: {', '.join(figures)} ({epoch['seconds']:.1f} s)"


_FIGURES = ("train_loss", "train_top1", "train_iou", "val_loss", "val_top1", "val_map", "val_iou", "val_top1_loc")


def refuse_rejected_share(config: TrainConfig, progress: Progress, images: int) -> None:
    """Raise RejectedShareError where more images could not be used than ``max_rejected`` allows."""
    rejected = len(progress.rejected)
    if rejected > config.max_rejected * images:
        raise RejectedShareError(
            f"{rejected} of {images} images could not be used, more than --max-rejected {config.max_rejected:g} allows;"
            f" the training is done, see {safe_url(config.out)}/rejected.jsonl"
        )


ABOUT = "Fine-tune a network on labelled images, for annotate --weights."

command = verb(
    "train",
    ABOUT,
    TrainConfig,
    run,
    "camlake train photos --out trained --model resnet50 --epochs 10",
)

if __name__ == "__main__":
    main(command)
