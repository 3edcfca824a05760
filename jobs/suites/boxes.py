"""The exact box kernel against OpenCV's resize, threshold and connected components, one thread each, interleaved."""

import time

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from jobs.console import Screen
from jobs.suites.common import PHOTO_HW, Figures, spread
from pipeline.arrays.boxes import foreground_levels, level_boxes
from schemas.config import BenchmarkConfig

MAPS = 320
"""Five classes of a batch of 64."""
THRESHOLD = 0.2


def measure(config: BenchmarkConfig, screen: Screen) -> Figures:
    """Return microseconds a map for maps of 7×7 and 14×14 at the photograph's size, and the ratio."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    figures: Figures = {}
    for side in (7, 14):
        maps = _smooth_maps(side)
        exact, opencv = [], []
        for _ in range(max(5, config.repeats)):
            exact.append(_time_us(lambda maps=maps: _exact(maps)))
            opencv.append(_time_us(lambda maps=maps: [_opencv(one) for one in maps]))
        ratio = [slow / fast for slow, fast in zip(opencv, exact, strict=True)]
        name = f"{side}×{side}"
        figures |= {
            f"{name} exact µs": spread(exact),
            f"{name} OpenCV µs": spread(opencv),
            f"{name} ratio": spread(ratio),
        }
        screen.say(f"{name}: exact {min(exact):.1f} µs a map, OpenCV {min(opencv):.1f} µs")
    return figures


def _smooth_maps(side: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(side)
    noise = rng.normal(size=(MAPS, side, side)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(one, (0, 0), side / 7) for one in noise])


def _time_us(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return (time.perf_counter() - started) / MAPS * 1e6


def _exact(maps: NDArray[np.float32]) -> None:
    tensor = torch.from_numpy(maps)
    level_boxes(tensor, foreground_levels(tensor, torch.tensor([THRESHOLD])))


def _opencv(grid: NDArray[np.float32]) -> NDArray[np.int32] | None:
    """Return the box of the largest component at the photograph's size, as the paper's rule is usually written."""
    height, width = PHOTO_HW
    surface = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
    foreground = (surface >= THRESHOLD * surface.max()).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    return stats[1:][stats[1:, cv2.CC_STAT_AREA].argmax()] if count > 1 else None
