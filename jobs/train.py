"""``camlake train``: fine-tune a network on labelled images."""

import math
from typing import TYPE_CHECKING

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.filesystems import refuse_unwritable
from pipeline.storage.inputs.folders import refuse_missing
from schemas.errors import CamlakeError, RejectedShareError
from schemas.options.network_names import only_user_names
from schemas.options.train import TrainConfig
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.graph.train.checkpoints import Progress


def run(config: TrainConfig, screen: Screen) -> None:
    """Train, or continue a stopped training, and print its best epoch.

    Raises CamlakeError where the loss is not finite, and RejectedShareError where more images could not be used than
    ``max_rejected`` allows.
    """
    refuse_missing(config.input, config)
    refuse_unwritable("--out", config.out, config)
    from pipeline.graph.train.training import epoch_in_words, labelled_images, train_network

    train, val = labelled_images(config, screen)
    progress = train_network(config, train, val, screen)
    last = progress.history[-1]
    out = safe_url(config.out).rstrip("/")
    if not math.isfinite(last["train_loss"]):
        so_far = f"; the best weights so far are {out}/best.safetensors" if progress.best else ""
        raise CamlakeError(
            f"the loss of epoch {len(progress.history)} is no finite number; try a smaller --lr, with another"
            f" --out{so_far}"
        )
    best = progress.best or last
    screen.result(f"best of {len(progress.history)} epochs: {epoch_in_words(best)}", **best)
    way = " --method regress" if config.supervision == "boxes" else ""
    named = f" --model {config.model}" if only_user_names(config.model) else ""
    screen.result(f"use it:  camlake annotate IMAGES --out LABELS{named} --weights {out}/best.safetensors{way}")
    refuse_rejected_share(config, progress, len(train) + len(val))


def refuse_rejected_share(config: TrainConfig, progress: "Progress", images: int) -> None:
    """Raise RejectedShareError where more images could not be used than ``max_rejected`` allows."""
    rejected = len(progress.rejected)
    if rejected > config.max_rejected * images:
        raise RejectedShareError(
            f"{rejected} of {images} images could not be used, more than --max-rejected {config.max_rejected:g} allows;"
            f" the training is done, see {safe_url(config.out)}/rejected.jsonl"
        )


ABOUT = "Fine-tune a network on labelled images, for annotate --weights."

command = verb(
    ABOUT,
    TrainConfig,
    run,
    "camlake train photos --out trained --model resnet50 --epochs 10",
)

if __name__ == "__main__":
    main(command)
