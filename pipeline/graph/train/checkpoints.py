"""What a training leaves at its output, written whole by one process; the resume state comes last and makes it count.

last.safetensors, best.safetensors   weights with their card, for --weights
metrics.jsonl, curves.png            one line and one point an epoch
rejected.jsonl                       images that could not be used, with the reason
resume.pt                            settings, weights, optimizer, history: all that the next start goes on from
"""

import io
import json
import math
import pickle
import posixpath
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.images.charts import Line, Panel, chart_png
from pipeline.models.weights.checkpoint import Card, checkpoint_bytes
from pipeline.storage.filesystems import connect, is_local, safe_url
from pipeline.storage.lake.layout import LakePaths, read_whole, write_whole
from pipeline.storage.lake.lease import assert_generation_held
from schemas.config import StorageConfig
from schemas.errors import StoreError, UsageError

Epoch = dict[str, float]
"""An epoch's figures by name, as metrics.jsonl has them."""


@dataclass
class Progress:
    """How far a training has come."""

    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    """From 1; 0 before the first."""
    rejected: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason code and detail of every image that could not be used, by uri."""

    @property
    def best(self) -> Epoch | None:
        """The epoch with the best weights."""
        return self.history[self.best_epoch - 1] if self.best_epoch else None

    def add(self, epoch: Epoch) -> bool:
        """Note an epoch and return whether it is the best so far; of equal ones the first is."""
        self.history.append(epoch)
        better = math.isfinite(epoch["train_loss"]) and (self.best is None or _goodness(epoch) > _goodness(self.best))
        if better:
            self.best_epoch = len(self.history)
        return better

    def ended(self, epochs: int, patience: int | None) -> bool:
        """Return whether the last epoch is done, the loss is lost, or ``patience`` epochs brought nothing better."""
        done = len(self.history)
        lost = bool(done) and not math.isfinite(self.history[-1]["train_loss"])
        return done >= epochs or lost or (patience is not None and done - self.best_epoch >= patience)


def _goodness(epoch: Epoch) -> tuple[float, float]:
    """Return what the best epoch has most of: validation score, then a small loss; without validation a small loss."""
    scores = [
        epoch[name] for name in ("val_top1_loc", "val_top1", "val_map") if name in epoch and not math.isnan(epoch[name])
    ]
    return (*scores, 0.0)[0], -epoch.get("val_loss", epoch["train_loss"])


@dataclass(frozen=True)
class TrainingFiles:
    """The files of one training."""

    out: str
    storage: StorageConfig
    settings: dict[str, Any]
    """What decides the outcome, by the names of the options, in JSON's types."""

    def write(self, progress: Progress, learner: dict[str, Any], card: Card, better: bool) -> None:
        """Write all that an epoch changes; raises StoreError where the store refuses."""
        weights = checkpoint_bytes(learner["network"], card)
        if better:
            self._write("best.safetensors", weights)
        self._write("last.safetensors", weights)
        self._write("metrics.jsonl", _lines(progress.history))
        rows = [
            {"uri": uri, "reason_code": reason, "detail": detail}
            for uri, (reason, detail) in sorted(progress.rejected.items())
        ]
        if rows:
            self._write("rejected.jsonl", _lines(rows))
        self._write("curves.png", curves_png(progress.history, card.architecture.name))
        buffer = io.BytesIO()
        torch.save({"settings": self.settings, "learner": learner, **vars(progress)}, buffer)
        self._write("resume.pt", buffer.getvalue())

    def resume(self) -> tuple[Progress, dict[str, Any] | None]:
        """Return how far the training came and the learner's state, None at its beginning.

        Raises UsageError where it is the state of a training with other settings, StoreError where it can't be read.
        """
        content = self._read("resume.pt")
        if content is None:
            return Progress(), None
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            settings, learner = state["settings"], state["learner"]
            progress = Progress(state["history"], state["best_epoch"], state["rejected"])
        except (RuntimeError, pickle.UnpicklingError, LookupError, TypeError, EOFError) as error:
            raise StoreError(f"{safe_url(self.out)}/resume.pt is none of camlake's; use another --out") from error
        for name, value in self.settings.items():
            if settings.get(name) != value:
                what = "INPUT or --val" if name == "data" else f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{what}: the training in {safe_url(self.out)} has {settings.get(name)}, not {value}; go on with"
                    " the same, or use another --out"
                )
        return progress, learner

    def assert_held(self, lease: int) -> None:
        """Raise LeaseError where another run took the output over since this one got the ``lease`` of that generation.

        Raises UsageError where the output is a folder that this machine does not share with the one it began on.
        """
        fs, root = connect(self.out, self.storage)
        layout = LakePaths(root)
        if is_local(fs) and not fs.isdir(layout.full(layout.lease_dir)):
            raise UsageError(
                f"--out {self.out}: {socket.gethostname()} does not see this training there; allowed on several"
                " machines: object storage, or a folder that all of them share"
            )
        assert_generation_held(fs, root, lease)

    def _read(self, name: str) -> bytes | None:
        fs, root = connect(self.out, self.storage)
        return read_whole(fs, posixpath.join(root, name))

    def _write(self, name: str, content: bytes) -> None:
        fs, root = connect(self.out, self.storage)
        write_whole(fs, posixpath.join(root, name), content)


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def curves_png(history: Sequence[Epoch], title: str) -> bytes:
    """Return a chart of losses and accuracies over the epochs; what is not finite is left out."""
    panels = [
        Panel("epoch", "loss", _lines_of(history, _LOSSES), counted=True, open_above=True),
        Panel("epoch", "share of the images", _lines_of(history, _SHARES), counted=True),
    ]
    return chart_png(title, [panel for panel in panels if panel.lines])


_LOSSES = {"val_loss": "validation loss", "train_loss": "training loss"}
_SHARES = {
    "val_top1_loc": "validation top-1 localization",
    "val_iou": "validation mean IoU",
    "val_top1": "validation accuracy",
    "val_map": "validation mAP",
    "train_top1": "training accuracy",
}


def _lines_of(history: Sequence[Epoch], curves: Mapping[str, str]) -> list[Line]:
    points = {
        words: [(epoch["epoch"], epoch[name]) for epoch in history if math.isfinite(epoch.get(name, math.nan))]
        for name, words in curves.items()
    }
    return [Line(words, places) for words, places in points.items() if places]
