"""Compare the exact box kernel with OpenCV's resize, threshold and connected components: speed, agreement, scores.

Both run on one thread, in turn. On a machine with a GPU, the kernel is timed on the GPU too. The scores need
photographs with true boxes and real weights.
"""

import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import PHOTO_HW
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.arrays.boxes import foreground_levels, level_boxes
from pipeline.models.localize.engine import to_host
from tests.benchmarks.box_scores import photograph_scores
from tests.benchmarks.command import TruthConfig, benchmark
from tests.references.opencv_boxes import THRESHOLD, agreement, component_boxes, smooth_maps, upsampled

MAPS = 160
"""Maps of one call on the CPU: five classes of a batch of 32."""
GPU_MAPS = 1280
"""Maps of one call on the GPU: five classes of a batch of 256."""
SWEEP = 50
"""Number of thresholds, as in the sweep of ``camlake evaluate``."""
SAMPLE = 10_000
"""Number of maps of each size and smoothness on which the agreement is counted."""
BLURS = {"smooth": 1.5, "rough": 1.0}
"""Standard deviations of the blur in sevenths of a map's side. With 1.0, neighbouring cells of 7×7 correlate by .78."""


def measure(config: TruthConfig, reporter: Reporter) -> Figures:
    """Return µs a map, ratios and shares of agreement; with photographs and weights also the scores of both."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    figures: Figures = {}
    for side in (7, 14):
        figures |= _speed(side, max(5, config.repeats), reporter)
    if torch.cuda.is_available():
        figures |= _speed_on_gpu(max(5, config.repeats))
    for side in (7, 14):
        for name, blur in BLURS.items():
            figures |= _agreement(side, name, blur, reporter)
    if config.images and config.truth and config.weights:
        figures |= photograph_scores(config.model, config.weights, config.images, config.truth, reporter)
    return figures


def _speed(side: int, repeats: int, reporter: Reporter) -> Figures:
    maps = smooth_maps(MAPS, side, BLURS["rough"])
    exact, opencv, one, sweep = [], [], [], []
    for _ in range(repeats):
        exact.append(_best_us(lambda: _exact(maps, [THRESHOLD])) / MAPS)
        opencv.append(_best_us(lambda: [_opencv(each) for each in maps], tries=1) / MAPS)
        one.append(_best_us(lambda: _exact(maps[:1], [THRESHOLD])))
        sweep.append(_best_us(lambda: _exact(maps, np.arange(1, SWEEP + 1) / (SWEEP + 1))) / MAPS)
    ratio = [slow / fast for slow, fast in zip(opencv, exact, strict=True)]
    name = f"{side}×{side}"
    reporter.say(f"{name}: exact {min(exact):.1f} µs a map, OpenCV {min(opencv):.0f} µs")
    return {
        f"{name} exact µs a map": spread(exact),
        f"{name} OpenCV µs a map": spread(opencv),
        f"{name} ratio": spread(ratio),
        f"{name} exact µs of one map alone": spread(one),
        f"{name} exact µs a map at {SWEEP} thresholds": spread(sweep),
    }


def _speed_on_gpu(repeats: int) -> Figures:
    """Return µs a map for 7×7 maps that are on the GPU, and its ratio to OpenCV's time on the CPU."""
    grids = smooth_maps(GPU_MAPS, 7, BLURS["rough"])
    maps, thresholds = torch.from_numpy(grids).to("cuda"), torch.tensor([THRESHOLD], device="cuda")
    exact, opencv = [], []
    for _ in range(repeats):
        exact.append(_best_us(lambda: to_host(level_boxes(maps, foreground_levels(maps, thresholds)))) / GPU_MAPS)
        opencv.append(_best_us(lambda: [_opencv(each) for each in grids], tries=1) / GPU_MAPS)
    ratio = [slow / fast for slow, fast in zip(opencv, exact, strict=True)]
    return {"7×7 on the GPU exact µs a map": spread(exact), "7×7 on the GPU ratio": spread(ratio)}


def _best_us(work: Callable[[], object], tries: int = 3) -> float:
    """Return the microseconds of the fastest of a few tries."""
    taken = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken) * 1e6


def _exact(maps: NDArray[np.float32], thresholds: object) -> None:
    tensor = torch.from_numpy(maps)
    level_boxes(tensor, foreground_levels(tensor, torch.as_tensor(thresholds)))


def _opencv(grid: NDArray[np.float32]) -> None:
    surface = upsampled(grid, PHOTO_HW)
    component_boxes(surface, THRESHOLD * float(surface.max()))


def _agreement(side: int, name: str, blur: float, reporter: Reporter) -> Figures:
    """Return the share of maps whose exact box agrees with OpenCV's on the map upsampled 8 times, and other counts."""
    verdicts = agreement(smooth_maps(SAMPLE, side, blur))
    total = verdicts.total()
    share = verdicts["agrees"] / total
    rest = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common() if verdict != "agrees")
    reporter.say(
        f"{side}×{side} {name}: {share:.4f} of {total} maps with a foreground agree; the rest: {rest or 'none'}"
    )
    return {
        f"{side}×{side} {name} maps that agree within a pixel of 8×": share,
        f"{side}×{side} {name} others": rest or "none",
        f"{side}×{side} {name} unexplained": verdicts["unexplained"],
    }


command = benchmark(
    "boxes",
    "Compare the exact boxes with OpenCV's: speed, agreement and, with true boxes, scores.",
    TruthConfig,
    measure,
    "--model mobilenet_v2 --images PHOTOS --weights FILE --truth annotations.csv",
)

if __name__ == "__main__":
    main(command)
