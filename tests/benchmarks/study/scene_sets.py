"""The scenes of a study: rendered once, stored in the study's folder, read by every training."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.synthetic.drawings import CLASSES
from tests.benchmarks.study.clutter import ClutteredScene, render_clutter
from tests.benchmarks.study.study_config import StudyConfig

PARTS = {"train": 0, "choose": 1, "test": 2, "hints": 3}
"""The four sets and the first number of their seeds.

"train" is for learning, "choose" for thresholds, "test" for scores. "hints" is for classes only: its backgrounds hint
at the class, as in training.
"""
AT_ONCE = 100
"""Scenes that a process renders at a time; this takes half a second."""


@dataclass(frozen=True)
class SceneSet:
    """N scenes of S×S pixels."""

    pixels: NDArray[np.uint8]
    """(N, S, S, 3) RGB, mapped from the file."""
    labels: NDArray[np.int64]
    """(N,) class ids."""
    boxes: NDArray[np.float64]
    """(N, 4) xyxy boxes of the labelled objects, half-open, in pixels."""

    def __len__(self) -> int:
        return len(self.labels)


def part_size(config: StudyConfig, part: str) -> int:
    """Return the number of scenes of a set."""
    return config.scenes if part == "train" else config.tests


def scene(config: StudyConfig, part: str, index: int) -> ClutteredScene:
    """Return a scene, which depends only on set and index, so that a larger set begins with a smaller one."""
    correlation = config.correlation if part in {"train", "hints"} else 0.0
    rng = np.random.default_rng((PARTS[part], index))
    return render_clutter(rng, index % len(CLASSES), config.size, correlation)


def render_all(config: StudyConfig, folder: Path, pool: Executor, say: Callable[[str], None]) -> None:
    """Render the sets that are missing in ``folder``; a set gets its file name only once it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        target = folder / part
        if target.exists():
            continue
        say(f"rendering {part_size(config, part)} scenes of {config.size}×{config.size} pixels: {part}")
        starts = range(0, part_size(config, part), AT_ONCE)
        pieces = list(pool.map(_render, *zip(*((config, part, start) for start in starts), strict=True)))
        unfinished = folder / f"{part}.unfinished"
        unfinished.mkdir(exist_ok=True)
        columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        for name, values in columns.items():
            np.save(unfinished / f"{name}.npy", values)
        unfinished.rename(target)


def load(folder: Path, part: str) -> SceneSet:
    """Return a rendered set."""
    pixels, labels, boxes = (
        np.load(folder / part / f"{name}.npy", mmap_mode="r" if name == "pixels" else None)
        for name in ("pixels", "labels", "boxes")
    )
    return SceneSet(pixels, labels, boxes)


def _render(config: StudyConfig, part: str, start: int) -> dict[str, NDArray[Any]]:
    stop = min(start + AT_ONCE, part_size(config, part))
    scenes = [scene(config, part, index) for index in range(start, stop)]
    return {
        "pixels": np.stack([one.pixels for one in scenes]),
        "labels": np.array([one.label for one in scenes], dtype=np.int64),
        "boxes": np.stack([one.box_xyxy for one in scenes]),
    }
