"""Writes the files of a training to its output. One process writes them, the resume state last; it completes an epoch.

last.safetensors, best.safetensors   weights with their card, for --weights
metrics.jsonl, curves.png            one line, and one point of the curves, for each epoch
rejected.jsonl                       images that could not be used, with the reason
resume.pt                            settings, weights, optimizer and history: the state from which a training goes on
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
from pipeline.storage.filesystems import connect, is_local
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lease import assert_generation_held
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from schemas.errors import StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url

Epoch = dict[str, float]
"""The figures of an epoch by name, as they are in metrics.jsonl."""


@dataclass
class Progress:
    """How far a training has come."""

    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    """Number of the epoch with the best weights, from 1; 0 before the first epoch."""
    rejected: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason code and detail of every image that could not be used, by uri."""

    @property
    def best(self) -> Epoch | None:
        """The epoch with the best weights."""
        return self.history[self.best_epoch - 1] if self.best_epoch else None

    def add(self, epoch: Epoch) -> bool:
        """Add an epoch; return whether it is the best so far, which means better than all epochs before it."""
        self.history.append(epoch)
        better = math.isfinite(epoch["train_loss"]) and (self.best is None or _goodness(epoch) > _goodness(self.best))
        if better:
            self.best_epoch = len(self.history)
        return better

    def ended(self, epochs: int, patience: int | None) -> bool:
        """Return whether all ``epochs`` are done, the last loss is not finite, or ``patience`` epochs gave no gain."""
        done = len(self.history)
        diverged = bool(done) and not math.isfinite(self.history[-1]["train_loss"])
        return done >= epochs or diverged or (patience is not None and done - self.best_epoch >= patience)


def _goodness(epoch: Epoch) -> tuple[float, float]:
    """Return a pair that is largest for the best epoch: its validation score, then its loss with a minus sign."""
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
    """The options that affect the result, by name, in types of JSON."""

    def write(self, progress: Progress, learner: dict[str, Any], card: Card, better: bool) -> None:
        """Write all files after an epoch; with ``better`` also the best weights. Raises StoreError if a write fails."""
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
        """Return the progress of the training and the state of its learner; the state is None where none was written.

        Raises UsageError where the resume state is from a training with other settings, StoreError where it can't be
        read.
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
        """Raise LeaseError where another run has taken over the output since this run got the generation ``lease``.

        Raises UsageError where the output is a folder that this machine does not share with the machine of the driver.
        """
        fs, root = connect(self.out, self.storage)
        paths = LakePaths(root)
        if is_local(fs) and not fs.isdir(paths.full(paths.lease_dir)):
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
    """Return a PNG chart of losses and accuracies over the epochs, without values that are not finite."""
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
