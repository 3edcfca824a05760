"""All of ``camlake train`` on Ray: list → label → split → train → weights with their card."""

from collections.abc import Sequence

from pipeline.annotate.reporter import Reporter
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.train.checkpoints import Epoch, Progress
from pipeline.graph.train.controller import fit
from pipeline.graph.train.plan import counted, epoch_order, first_weights, make_job, plan_workers, training_files
from pipeline.graph.train.trackers import tracking
from pipeline.models import registry
from pipeline.storage.filesystems import canonical_url, connect
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import lease_when_free
from pipeline.storage.truth.labelled_images import LabelledImages, read_label_names, read_labelled, split_by_hash
from pipeline.storage.truth.truth import read_truth
from schemas.errors import UsageError
from schemas.options.train import TrainConfig
from schemas.url_secrets import safe_url


def labelled_images(config: TrainConfig, reporter: Reporter) -> tuple[LabelledImages, LabelledImages]:
    """Return the training images and the validation images; there may be no validation images.

    Raises UsageError where a class has no training image, and as ``read_labelled`` does.
    """
    if canonical_url(config.out).startswith(canonical_url(config.input).rstrip("/") + "/"):
        raise UsageError(f"--out {safe_url(config.out)}: lies inside INPUT, where it would be a class")
    names: Sequence[str] | None = read_label_names(config.labels, config) if config.labels else None
    input_boxes = config.iou if config.supervision == "boxes" and not config.boxes else None
    every = read_labelled(config.input, config, names, boxes=input_boxes)
    _refuse_missing(every, f"{safe_url(config.input)}")
    if config.label_smoothing and every.multi_label:
        smoothing = f"--label-smoothing {config.label_smoothing:g}"
        raise UsageError(f"{smoothing}: allowed: 0, as INPUT has several labels an image")
    train, val = split_by_hash(every, 0.0 if config.val else config.val_share)
    if config.val:
        val = read_labelled(config.val, config, train, "--val", boxes=input_boxes)
    _refuse_missing(train, f"--val-share {config.val_share:g}: in what is left for training")
    if config.supervision == "boxes":
        train, val = _with_true_boxes(config, train, val, reporter)
        reporter.say(f"{train.n_boxes} boxes to learn from, {val.n_boxes} to validate with")
    reporter.say(f"{len(train)} images of {len(train.labels)} classes to train on, {len(val)} to validate with")
    missing = val.missing()
    if len(val) and missing:
        reporter.say(f"note: no validation image of {', '.join(missing[:5])}{' and others' * (len(missing) > 5)}")
    return train, val


def _with_true_boxes(
    config: TrainConfig, train: LabelledImages, val: LabelledImages, reporter: Reporter
) -> tuple[LabelledImages, LabelledImages]:
    """Return ``train`` and ``val`` with true boxes, and say which annotations can't be used.

    Raises UsageError where no training image has a box, and for images with several labels.
    """
    if train.multi_label:
        raise UsageError("--supervision boxes: a box belongs to an image's one label, and these have several")
    if config.boxes:
        truth = read_truth(config.boxes, config)
        if said := truth.skipped_sentence(f"--boxes {safe_url(config.boxes)}"):
            reporter.say(said)
        train, val = train.with_boxes_of(truth, config.iou), val.with_boxes_of(truth, config.iou)
    if not train.n_boxes:
        source = f"--boxes {safe_url(config.boxes)}" if config.boxes else f"INPUT {safe_url(config.input)}"
        raise UsageError(
            f"--supervision boxes: {source} has no box for any of the {len(train)} training images and its class;"
            " allowed: --boxes FILE, or an INPUT with columns xmin, ymin, xmax and ymax"
        )
    return train, val


def _refuse_missing(images: LabelledImages, where: str) -> None:
    """Raise UsageError where a class has no image, or where there are too few classes to learn from."""
    missing = images.missing()
    if missing or len(images.labels) < 1 + (not images.multi_label):
        problem = f"no image of {missing[0]!r}" if missing else f"one class, {images.labels[0]!r}, is nothing to learn"
        raise UsageError(f"{where}: {problem}; allowed: images of every class, and two classes or more")


def train_network(config: TrainConfig, train: LabelledImages, val: LabelledImages, reporter: Reporter) -> Progress:
    """Train while this process holds the lease on the output, and return the progress.

    A training that stopped goes on from its resume state. For a training that has ended, the progress is only read.
    """
    files = training_files(config, train, val)
    fs, root = connect(files.out, config)
    with lease_when_free(fs, root, new_run_id(), config.wait_s, reporter.say) as lease:
        progress, _ = files.resume()
        if progress.ended(config.epochs, config.patience):
            reporter.say("this training has ended already")
            return progress
        if progress.history:
            reporter.say(f"going on after epoch {len(progress.history)}")
        architecture, start = first_weights(config, train)
        reporter.say(f"{registry.get(config.model).in_words(architecture)} from {start.source}; starting Ray")
        with ray_cluster(config.address) as machine:
            workers = plan_workers(config, machine)
            job = make_job(config, train, val, architecture, start, workers, files, lease.generation)
            reporter.say(f"{counted(workers.workers, 'process')} on {'GPU' if workers.cuda else 'CPU'}")
            images = epoch_order(len(train), config.batch_size, config.seed, 0).size + len(val)
            n_left = (config.epochs - len(progress.history)) * images
            with (
                tracking(files.out, config, files.settings, progress.history, reporter.say) as track,
                reporter.progress("training", n_left) as advance,
            ):

                def on_epoch(epoch: Epoch) -> None:
                    reporter.say(f"epoch {epoch_in_words(epoch)}", **epoch)
                    track(epoch)

                return fit(job, start.state, train, val, advance, on_epoch, reporter.say)


def epoch_in_words(epoch: Epoch) -> str:
    """Return the number of an epoch and its main figures in one line."""
    figures = [f"{name.replace('_', ' ')} {epoch[name]:.3f}" for name in _FIGURES if name in epoch]
    return f"{epoch['epoch']:g}: {', '.join(figures)} ({epoch['seconds']:.1f} s)"


_FIGURES = ("train_loss", "train_top1", "train_iou", "val_loss", "val_top1", "val_map", "val_iou", "val_top1_loc")
