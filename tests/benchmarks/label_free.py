"""Measure, on photographs with boxes, gain and cost of better maps without more labels: resolutions, views, methods.

The setting is chosen on half of the photographs and scored on the other half, beside plain maps. Then the halves
change places, for a figure over all photographs. The search is greedy: resolutions first, then methods at the best
resolution, then mirrors and crops, then scales. ``MOST_PASSES`` excludes settings that are too expensive.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from jobs.benchmark.machine import Figures
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.arrays.figures import THRESHOLDS, Pairs, sweep_maps
from pipeline.arrays.maps import quantize
from pipeline.arrays.metrics import IOU_DELTA, Bools, bootstrap_interval
from pipeline.images.resize import ResizePlan
from pipeline.models.localize.engine import Engine
from pipeline.models.localize.methods import METHODS
from pipeline.models.localize.runtime import Runtime
from pipeline.models.localize.views import Canvas, ViewPlan, make_views, mean_of_views, plan_views
from pipeline.models.weights.load_weights import Weights, load_weights
from pipeline.models.weights.state_fitting import load_network
from pipeline.storage.truth.truth import read_truth
from schemas.errors import UsageError
from schemas.options.annotate import Method, Tta
from schemas.options.config import StorageConfig
from tests.benchmarks.box_scores import known_photographs, pairs_of
from tests.benchmarks.command import TruthConfig, benchmark, resolved_precision

RESOLUTIONS = (224, 288, 320, 448)
TRIED: tuple[Method, ...] = ("cam", "gradcam", "layercam", "backprop")
SCALES: tuple[tuple[float, ...], ...] = ((1.0, 1.5), (0.75, 1.0, 1.25), (1.0, 1.5, 2.0))
UNIT_PX = 224
"""Side of the input in pixels of the forward pass that is the unit of cost."""
MOST_PASSES = 40.0
"""The most forward passes for an image; a setting that costs more is not tried."""
BATCH = 8
"""Images of a forward pass. At 448 pixels and with views, more images would not fit into the CPU's caches."""


@dataclass(frozen=True)
class Setting:
    """The options with which maps are made."""

    image_size: int
    method: Method = "cam"
    tta: Tta = "none"
    scales: tuple[float, ...] = (1.0,)

    def __str__(self) -> str:
        """Return the setting as options of ``camlake annotate``."""
        scales = ",".join(f"{scale:g}" for scale in self.scales)
        return f"--image-size {self.image_size} --method {self.method} --tta {self.tta} --scales {scales}"

    @property
    def passes(self) -> float:
        """Return the setting's cost for one class of an image, in forward passes with an input of UNIT_PX a side.

        A backward pass through the trunk counts as two forward passes; backprop has one backward pass. The gradients
        of the last maps are not counted, because the head is small.
        """
        views = make_views(self.image_size, self.tta, self.scales)
        return sum((view.side_px / UNIT_PX) ** 2 for view in views) * (3 if self.method == "backprop" else 1)


@dataclass
class HalvedPhotographs:
    """Photographs in two halves, and P true pairs of an image and the classes of an object in it."""

    files: list[Path]
    fitting: list[tuple[int, ...]]
    """(P,) the ids of the network's classes that fit the pair's object."""
    pairs: Pairs
    first: Bools
    """(P,) whether the pair's photograph is in the first half."""


@dataclass
class Search:
    """Tries each setting once and keeps its hits."""

    photographs: HalvedPhotographs
    weights: Weights
    runtime: Runtime
    reporter: Reporter
    hits: dict[Setting, Bools] = field(default_factory=dict)
    """For each setting (P, T): whether the box of each pair is right at each threshold."""

    def try_out(self, settings: Sequence[Setting]) -> list[Setting]:
        """Try the settings that cost at most MOST_PASSES, and return them."""
        affordable = [one for one in settings if one.passes <= MOST_PASSES]
        for one in affordable:
            if one not in self.hits:
                self.hits[one] = self._measured(one)
                best = self.hits[one].mean(axis=0).max()
                self.reporter.say(f"{one}: {best:.3f} on all photographs, {one.passes:.1f} passes")
        return affordable

    def _measured(self, setting: Setting) -> Bools:
        maps, _, _ = quantize(true_maps(setting, self.photographs, self.weights, self.runtime))
        every = np.arange(len(maps))
        chunks = ((maps[start : start + 64], every[start : start + 64]) for start in range(0, len(maps), 64))
        right: Bools = sweep_maps(self.photographs.pairs, chunks).largest_iou >= IOU_DELTA
        return right


@dataclass(frozen=True)
class Half:
    """The pairs on which settings and thresholds are chosen; the pairs of the other half are for scoring."""

    search: Search
    chosen_on: Bools
    """(P,) whether the pair belongs to this half."""

    def best_of(self, candidates: Sequence[Setting]) -> Setting:
        """Return the best affordable setting on this half; of equally good settings the cheapest."""
        return max(self.search.try_out(candidates), key=lambda one: (self.score(one), -one.passes))

    def score(self, setting: Setting) -> float:
        """Return MaxBoxAcc of a setting on this half."""
        return float(self._curve(setting).max())

    def threshold(self, setting: Setting) -> int:
        """Return the index of the best threshold on this half; of equally good thresholds the lowest."""
        return int(self._curve(setting).argmax())

    def best(self, plain: Setting) -> Setting:
        """Search from ``plain`` and return the best setting."""
        best = self.best_of([plain, *(replace(plain, image_size=side) for side in RESOLUTIONS)])
        best = self.best_of([best, *(replace(best, method=method) for method in TRIED)])
        best = self.best_of([best, *(replace(one, tta=tta) for tta in get_args(Tta) for one in (best, plain))])
        fewer = replace(best, tta="flip") if best.tta == "tencrop" else best
        return self.best_of([best, *(replace(fewer, scales=scales) for scales in SCALES)])

    def held_out(self, setting: Setting) -> NDArray[np.float64]:
        """Return (Q, T) for the Q pairs of the other half: 1 where the box is right at a threshold, else 0."""
        found: NDArray[np.float64] = self.search.hits[setting][~self.chosen_on].astype(np.float64)
        return found

    def gains(self, setting: Setting, plain: Setting) -> NDArray[np.float64]:
        """Return (Q,) the hits of ``setting`` less those of ``plain`` on the other half, at thresholds of this half."""
        better, worse = (self.held_out(one)[:, self.threshold(one)] for one in (setting, plain))
        gains: NDArray[np.float64] = better - worse
        return gains

    def _curve(self, setting: Setting) -> NDArray[np.float64]:
        curve: NDArray[np.float64] = self.search.hits[setting][self.chosen_on].mean(axis=0)
        return curve


def measure(config: TruthConfig, reporter: Reporter) -> Figures:
    """Return MaxBoxAcc and cost of the best setting and of plain maps; each half is scored with the other's choice."""
    if not (config.images and config.truth and config.weights):
        raise UsageError("label_free needs --images, --truth and --weights")
    weights = load_weights(config.model, config.weights, None)
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    runtime = Runtime("cpu", resolved_precision(config), compile=False, threads=threads, batch_size=BATCH)
    photographs = read_photographs(Path(config.images), config.truth, weights.labels)
    search = Search(photographs, weights, runtime, reporter)
    plain = Setting(weights.preprocessing.image_size)
    halves = Half(search, photographs.first), Half(search, ~photographs.first)
    best = [half.best(plain) for half in halves]
    facts = {"images": len(photographs.files), "precision": runtime.precision}
    return facts | figures(halves[0], best[0], plain) | both_ways(halves, best, plain)


def figures(half: Half, best: Setting, plain: Setting) -> Figures:
    """Return the figures of ``best`` and of plain maps on the other half; ``best`` was chosen on ``half``."""
    image = half.search.photographs.pairs.image[~half.chosen_on]
    gains = half.gains(best, plain)
    both = np.stack([half.held_out(best), half.held_out(plain)], axis=1)
    found: Figures = {
        "pairs chosen on": int(half.chosen_on.sum()),
        "pairs scored on": len(image),
        "chosen setting": str(best),
        "plain setting": str(plain),
        "gain at the thresholds chosen with it": float(gains.mean()),
        "its 95 % interval": _rounded(bootstrap_interval(gains, image)),
        "gain at the best thresholds": float(_gain(both.mean(axis=0))),
        "its 95 % interval, thresholds chosen anew": _rounded(bootstrap_interval(both, image, _gain)),
    }
    for name, one in (("chosen", best), ("plain", plain)):
        accuracy, place = half.held_out(one).mean(axis=0), half.threshold(one)
        found |= {
            f"{name}: threshold": float(THRESHOLDS[place]),
            f"{name}: MaxBoxAcc at that threshold": float(accuracy[place]),
            f"{name}: MaxBoxAcc at the best threshold": float(accuracy.max()),
            f"{name}: passes": one.passes,
        }
    return found


def both_ways(halves: Sequence[Half], best: Sequence[Setting], plain: Setting) -> Figures:
    """Return the gain over all pairs, each scored with the other half's choice, and the settings that were tried."""
    search = halves[0].search
    image = search.photographs.pairs.image
    gains = np.zeros(len(image))
    for half, one in zip(halves, best, strict=True):
        gains[~half.chosen_on] = half.gains(one, plain)
    tried = {
        f"tried: {one}": {"MaxBoxAcc of all": float(hits.mean(axis=0).max()), "passes": round(one.passes, 2)}
        for one, hits in search.hits.items()
    }
    return {
        "chosen setting the other way round": str(best[1]),
        "gain both ways": float(gains.mean()),
        "its 95 % interval, both ways": _rounded(bootstrap_interval(gains, image)),
        **tried,
    }


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in interval]


def _gain(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (…): the maximum over T of the first of two accuracies (…, 2, T), less the maximum of the second."""
    highest = accuracy.max(axis=-1)
    gain: NDArray[np.float64] = highest[..., 0] - highest[..., 1]
    return gain


def in_first_half(name: str) -> bool:
    """Return whether a photograph is in the first half; this depends only on its file name."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def read_photographs(images: Path, truth_url: str, labels: Sequence[str]) -> HalvedPhotographs:
    """Return a folder's photographs and their true pairs whose object fits a class of the network.

    Raises UsageError where a half has no pair.
    """
    truth = read_truth(truth_url, StorageConfig())
    files, pairs, image = known_photographs(images, truth)
    named = {label: (index,) for index, label in enumerate(labels)}
    fitting = [truth.class_ids[pair] or named.get(truth.labels[pair], ()) for pair in pairs]
    known = np.array([bool(ids) for ids in fitting], bool)
    first = np.array([in_first_half(files[place].name) for place in image[known]], bool)
    if first.all() or not first.any():
        raise UsageError(f"--images {str(images)!r}: {len(files)} photographs of the truth are too few for two halves")
    sizes_hw = np.array([cv2.imread(str(path)).shape[:2] for path in files])
    return HalvedPhotographs(
        files, [ids for ids in fitting if ids], pairs_of(truth, pairs[known], image[known], sizes_hw), first
    )


@torch.no_grad()
def true_maps(
    setting: Setting, photographs: HalvedPhotographs, weights: Weights, runtime: Runtime
) -> NDArray[np.float32]:
    """Return the pairs' maps (P, h, w): of each pair's fitting classes, the one with the highest mean over views."""
    network = load_network(
        weights.architecture.name, weights.state, setting.image_size, preprocessing=weights.preprocessing
    )
    kind = METHODS[setting.method]
    map_hw = partial(kind.map_hw, network)
    plan = plan_views(make_views(setting.image_size, setting.tta, setting.scales), map_hw)
    method, canvas = kind(Engine(network, runtime), network.head), Canvas(plan, map_hw, runtime.device)
    owner = photographs.pairs.image
    order = np.argsort(owner, kind="stable")
    maps = np.zeros((len(order), *plan.canvas_hw), np.float32)
    at_once = min(BATCH, method.images_at_once(plan.image_pixels) or BATCH)
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        pixels = _inputs([photographs.files[place] for place in owner[rows]], plan)
        passes = [method.forward(view) for view in plan.inputs(pixels)]
        logits = mean_of_views([one.logits for one in passes])
        ids = [max(photographs.fitting[row], key=scores.__getitem__) for row, scores in zip(rows, logits, strict=True)]
        chosen = torch.tensor(ids)[:, None]
        maps[rows] = canvas.lay([method.maps(one, chosen) for one in passes])[:, 0].numpy()
    return maps


def _inputs(files: Sequence[Path], plan: ViewPlan) -> torch.Tensor:
    squash = ResizePlan("squash", plan.side_px, plan.canvas_hw)
    return torch.from_numpy(np.stack([squash.apply(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)) for path in files]))


command = benchmark(
    "label_free",
    "Measure what resolutions, views and methods bring and cost, on photographs with true boxes.",
    TruthConfig,
    measure,
    "--model mobilenet_v2 --images PHOTOS --weights FILE --truth annotations.csv",
)

if __name__ == "__main__":
    main(command)
