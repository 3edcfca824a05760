"""Chooses the figure/ground direction of a run: a given, stored or installed one, or one learned from the run's images.

The direction of an output's rows is stored in the output, so that every later run and ``rebox`` use the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.annotate.foreground.figure_sample import learn, look_at
from pipeline.annotate.image_reader import ImageReader
from pipeline.annotate.model import Model
from pipeline.arrays.figure_ground import FOLDS
from pipeline.models.localize.foreground import (
    Foreground,
    foreground_bytes,
    foreground_of,
    refuse_unfit,
    shipped_foreground,
    stride16_name,
)
from pipeline.storage.filesystems import read_url
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.plan.planning import PlanSlice, read_plan_slice
from pipeline.storage.lake.records import committed_settings
from pipeline.storage.lake.run import OpenRun
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from schemas.errors import StoreError
from schemas.options.annotate import AnnotateConfig
from schemas.url_secrets import safe_url

LEAST_IMAGES = 100
"""A run of fewer images learns no direction: with 10 photographs half of the gain was lost, with 30 almost nothing."""
MOST_IMAGES = 300
"""Most images from which a direction is learned: more photographs changed nothing."""


@dataclass(frozen=True)
class ForegroundChoice:
    """The direction that a run uses, and the reason."""

    foreground: Foreground | None
    said: str
    """The reason in words for the user; empty where the user needs no message."""


def choose(config: AnnotateConfig, model: Model, run: OpenRun, slices: Sequence[PlanSlice]) -> ForegroundChoice:
    """Return the direction for the planned inputs of an open run, and store it in the output.

    Raises ModelError or InputError for a file that can't be used, StoreError where the output can't be read.
    """
    choice = known(config, model, run.fs, run.root) or _learned(config, model, run, slices)
    if choice.foreground:
        path = LakePaths(run.root).foreground_file(model.partition)
        write_whole(run.fs, path, foreground_bytes(choice.foreground))
    return choice


def known(config: AnnotateConfig, model: Model, fs: AbstractFileSystem, root: str) -> ForegroundChoice | None:
    """Return the direction that a run takes without learning one; None where it would learn one from its images.

    Raises ModelError or InputError for a file that can't be used, StoreError where the output can't be read.
    """
    state = model.weights.state
    if config.foreground not in ("auto", "off"):
        where = f"--foreground {safe_url(config.foreground)}"
        given = foreground_of(read_url(config.foreground, config), where)
        refuse_unfit(given, model.network, state, where)
        return ForegroundChoice(given, f"foreground: {safe_url(config.foreground)}")
    if config.foreground == "off" or config.box_rule != "auto" or config.method == "regress":
        return ForegroundChoice(None, "")
    if (committed := committed_settings(fs, root, model.partition)) is not None:
        return _of_rows(fs, root, model, committed.get("foreground", "off"))
    if shipped := shipped_foreground(model.network, state):
        return ForegroundChoice(shipped, f"foreground: the installed one of {model.network.name}")
    return None


def _of_rows(fs: AbstractFileSystem, root: str, model: Model, digest: str) -> ForegroundChoice:
    """Return the stored direction of the output's rows; raises StoreError where it is missing or was changed."""
    if digest == "off":
        return ForegroundChoice(None, "")
    path = LakePaths(root).foreground_file(model.partition)
    content = read_whole(fs, path)
    kept = None if content is None else foreground_of(content, path)
    if kept is None or kept.digest != digest:
        raise StoreError(
            f"{path}: the figure/ground direction of the output's rows is missing or was changed; put it back, or use "
            "another --out"
        )
    return ForegroundChoice(kept, "foreground: as for the rows that are there")


def _learned(config: AnnotateConfig, model: Model, run: OpenRun, slices: Sequence[PlanSlice]) -> ForegroundChoice:
    """Return the direction learned from a sample of the planned inputs; None, with the reason, where that fails."""
    planned = sum(one.rows for one in slices)
    name = stride16_name(model.network)
    if name is None:
        return ForegroundChoice(
            None, f"foreground: {model.network.name} has no tensor of stride 16; boxes of the maps alone"
        )
    if not planned:
        return ForegroundChoice(None, "")
    if planned < LEAST_IMAGES:
        return ForegroundChoice(
            None, f"foreground: none, for fewer than {LEAST_IMAGES} images; boxes of the maps alone"
        )
    reader = ImageReader(config.storage, config.out, config.max_bytes)
    looked = look_at(config, model, reader, sample(slices, run.fs, run.root, MOST_IMAGES), name)
    if len(looked.uris) < max(FOLDS, LEAST_IMAGES // 2):
        few = f"only {len(looked.uris)} images of the sample decode"
        return ForegroundChoice(None, f"foreground: {few}; boxes of the maps alone")
    foreground, direction = learn(looked, model, name)
    if direction.refusal:
        return ForegroundChoice(None, f"foreground: not stable here, {direction.refusal}; boxes of the maps alone")
    return ForegroundChoice(
        foreground,
        f"foreground: learned from {len(looked.uris)} images, halves agree by {direction.halves_cosine:.2f}, "
        f"correlation with the maps {direction.correlation:.2f}; no truth has checked it: see `camlake foreground`",
    )


def sample(slices: Sequence[PlanSlice], fs: AbstractFileSystem, root: str, count: int) -> pa.Table:
    """Return up to ``count`` planned inputs (PLAN), evenly distributed over the plan."""
    ends = np.cumsum([one.rows for one in slices])
    wanted = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).round().astype(np.int64))
    owner = np.searchsorted(ends, wanted, side="right")
    parts = []
    for number in np.unique(owner).tolist():
        rows = wanted[owner == number] - (ends[number] - slices[number].rows)
        parts.append(read_plan_slice(fs, root, slices[number]).take(pa.array(rows)))
    return pa.concat_tables(parts)


def with_foreground(config: AnnotateConfig, foreground: Foreground | None) -> AnnotateConfig:
    """Return ``config`` with the threshold and the outputs that a direction needs, unless the user chose them."""
    changed: dict[str, object] = {}
    if foreground and config.box_rule == "auto" and "threshold" not in config.model_fields_set:
        changed["threshold"] = (foreground.card.threshold,)
    if foreground and "outputs" not in config.model_fields_set:
        changed["outputs"] = (*config.outputs, "foreground")
    return config.model_copy(update=changed)
