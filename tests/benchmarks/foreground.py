"""Measure the gain from figure and ground on photographs with true boxes; no setting is chosen on scored pictures.

There are two sets of photographs. Each half of ``--images`` is scored with the direction learned from ``--other`` and
the other half of ``--images``, and with the rule and threshold chosen on that other half. ``--other`` is scored with
the direction, rule and threshold from ``--images``. Plain maps are scored at the default threshold and at the threshold
that is best on the scored pictures, which a user without truth cannot know.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from jobs.benchmark.machine import Figures
from jobs.terminal.console import main
from pipeline.annotate.foreground.figure_sample import Looked, learn
from pipeline.annotate.foreground.foreground_learning import in_first_half, known_pairs, learn_from, maps_of_pairs
from pipeline.annotate.model import Model, load_model
from pipeline.annotate.reporter import Reporter
from pipeline.arrays.calibration import expected_calibration_error, reliability
from pipeline.arrays.figure_ground import area_matched, box_areas, fuse
from pipeline.arrays.figures import THRESHOLDS, Pairs
from pipeline.arrays.foreground_scores import COMBINATIONS, Chosen, Trial, of_means
from pipeline.arrays.metrics import IOU_DELTA, Bools
from pipeline.models.localize.foreground import Foreground
from pipeline.storage.truth.truth import read_truth
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.box_rules import AUTO_THRESHOLD, MIN_PROB, Combination
from schemas.options.config import StorageConfig, option
from tests.benchmarks.command import TruthConfig, benchmark

LARGE = 0.9
"""A box that covers more than this share of the picture is too large to localize an object."""
_ALL = 10_000


class ForegroundBenchmark(TruthConfig):
    """The configuration of the measurement."""

    other: str | None = option(None, "other photographs with true boxes: a folder", "Options")
    other_truth: str | None = option(None, "their true boxes", "Options")
    combination: Combination | None = option(
        None, "the one way of fusing; default: chosen beside the threshold", "Options"
    )


class Photographs(NamedTuple):
    """A set of photographs with its P true pairs of image and object class, and the class maps of the pairs."""

    looked: Looked
    pairs: Pairs
    class_ids: list[tuple[int, ...]]
    class_maps: Tensor
    """(P, h, w) the map of each pair."""
    first: Bools
    """(P,) whether the pair's photograph is in the first half."""


def measure(config: ForegroundBenchmark, reporter: Reporter) -> Figures:
    """Return the figures of one network on both sets."""
    if not (config.images and config.truth and config.other and config.other_truth and config.weights):
        raise UsageError("foreground needs --images, --truth, --other, --other-truth and --weights")
    job = AnnotateConfig(input=config.images, out="unused", model=config.model, weights=config.weights)
    model = load_model(job)
    ways = (config.combination,) if config.combination else COMBINATIONS
    name, one = _photographs(job, model, config.truth)
    _, other = _photographs(job.model_copy(update={"input": config.other}), model, config.other_truth)
    figures: Figures = {"images": len(one.looked.uris), "other images": len(other.looked.uris)}
    halves = [_taught(model, name, one, own, other, ways) for own in (one.first, ~one.first)]
    figures |= _both_halves(one, halves, reporter)
    figures |= _scores_without_truth(one, halves)
    taught = _taught(model, name, one, np.ones(len(one.first), dtype=np.bool_), None, ways)
    figures |= _other_set(other, taught, reporter)
    return figures


class Taught(NamedTuple):
    """The direction learned from some photographs, and the rules and thresholds chosen for fused and plain maps."""

    foreground: Foreground
    rule: Chosen
    plain: Chosen
    trial: Trial
    """The trial of all combinations on all pairs of ``--images``."""
    area_place: int
    """Index of the threshold that the mean area of the boxes gives for sumprod."""


def _photographs(job: AnnotateConfig, model: Model, truth: str) -> tuple[str, Photographs]:
    looked = learn_from(job, model, _ALL, stable=False).looked
    pairs, class_ids, image = known_pairs(looked, model, read_truth(truth, StorageConfig()))
    maps = maps_of_pairs(looked, model, class_ids, image)
    first = in_first_half([looked.uris[place] for place in image])
    return model.network.stride16 or "", Photographs(looked, pairs, class_ids, maps, first)


def _taught(
    model: Model, name: str, one: Photographs, own: Bools, more: Photographs | None, ways: tuple[Combination, ...]
) -> Taught:
    """Learn from the images of the pairs in the mask ``own`` (P,) and from ``more``; choose rules on these pairs."""
    images = np.unique(one.pairs.image[own])
    parts = [_some(one.looked, images)] + ([more.looked] if more else [])
    looked = Looked(
        tuple(uri for part in parts for uri in part.uris),
        tuple(version for part in parts for version in part.versions),
        np.concatenate([part.sizes_hw for part in parts]),
        *(
            torch.cat([getattr(part, column) for part in parts])
            for column in ("logits", "features", "stride16", "class_maps")
        ),
    )
    foreground, _ = learn(looked, model, name)
    trial = _trial(one, foreground, COMBINATIONS)
    thresholds = torch.tensor(THRESHOLDS[1:], dtype=torch.float32)
    figure = foreground.maps(looked.stride16.float())
    fused = fuse(looked.class_maps[:, None], figure, "sumprod")[:, 0]
    area = area_matched(box_areas(fused, thresholds), thresholds)
    return Taught(foreground, trial.choose(own, ways), trial.choose(own, (None,)), trial, round(area * 50))


def _some(looked: Looked, images: np.ndarray) -> Looked:
    chosen = torch.from_numpy(images)
    return Looked(
        tuple(looked.uris[place] for place in images),
        tuple(looked.versions[place] for place in images),
        looked.sizes_hw[images],
        *(getattr(looked, column)[chosen] for column in ("logits", "features", "stride16", "class_maps")),
    )


def _trial(one: Photographs, foreground: Foreground, ways: tuple[Combination, ...]) -> Trial:
    figure = foreground.maps(one.looked.stride16.float())[torch.from_numpy(one.pairs.image)]
    return Trial(one.pairs, one.class_maps, figure, ways)


def _both_halves(one: Photographs, halves: list[Taught], reporter: Reporter) -> Figures:
    """Score each half with the rule chosen on the other half and the direction learned from it and the other set."""
    found: Figures = {
        f"half {number}: rule": f"{half.rule.combination} at {half.rule.threshold:.2f}"
        for number, half in enumerate(halves, 1)
    }
    trials = [half.trial for half in halves]
    default = round(AUTO_THRESHOLD * 50)
    plain_iou = trials[0].sweeps[None].largest_iou
    plain_best = int((plain_iou >= IOU_DELTA).mean(0).argmax())
    rules = {
        "chosen rule": [half.rule for half in halves],
        "sumprod at the mean area's threshold": [Chosen("sumprod", half.area_place) for half in halves],
        "sumprod at .36": [Chosen("sumprod", default)] * 2,
        "product at .36": [Chosen("product", default)] * 2,
    }
    others = {"plain at its best threshold": plain_best, "plain at .36": default}
    for name, (by_first, by_other) in rules.items():
        iou = np.where(
            one.first,
            trials[1].sweeps[by_other.combination].largest_iou[:, by_other.place],
            trials[0].sweeps[by_first.combination].largest_iou[:, by_first.place],
        )
        for against, place in others.items():
            found |= _row(f"{name}, against {against}", iou, plain_iou[:, place], one, reporter)
    return found


def _other_set(other: Photographs, taught: Taught, reporter: Reporter) -> Figures:
    trial = _trial(other, taught.foreground, COMBINATIONS)
    iou = trial.sweeps[taught.rule.combination].largest_iou[:, taught.rule.place]
    plain = trial.sweeps[None].largest_iou
    found: Figures = {"other: rule": f"{taught.rule.combination} at {taught.rule.threshold:.2f}"}
    found |= _row(
        "other, against plain at the threshold that --images chose", iou, plain[:, taught.plain.place], other, reporter
    )
    best = int((plain >= IOU_DELTA).mean(0).argmax())
    return found | _row("other, against plain at its best threshold", iou, plain[:, best], other, reporter)


def _row(name: str, iou: np.ndarray, plain: np.ndarray, one: Photographs, reporter: Reporter) -> Figures:
    found = of_means(name, iou >= IOU_DELTA, plain >= IOU_DELTA, one.pairs.image)
    low, high = found.interval
    reporter.say(
        f"{name}: {found.fused:.3f} / {found.plain:.3f}, {found.fused - found.plain:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    return {
        f"{name}: GT-known": found.fused,
        f"{name}: plain": found.plain,
        f"{name}: gain, 95 %": [round(low, 4), round(high, 4)],
    }


def _scores_without_truth(one: Photographs, halves: list[Taught]) -> Figures:
    """Return the share of large boxes of the most probable class, and the calibration error of c × class_prob.

    c is the share of right boxes in the half on which the rule was chosen.
    """
    looked = one.looked
    top1 = looked.logits.argmax(1)
    probs = looked.logits.softmax(1).max(1).values.numpy()
    fitting: dict[int, list[int]] = {}
    for pair, image in enumerate(one.pairs.image.tolist()):
        fitting.setdefault(image, []).append(pair)
    of_image = in_first_half(list(looked.uris))
    scores, right, areas = [], [], []
    for number, half in enumerate(halves):
        own = ~of_image if number == 0 else of_image
        images = np.flatnonzero(own)
        figure = half.foreground.maps(looked.stride16[images].float())
        maps = fuse(looked.class_maps[images, None], figure, cast(Combination, half.rule.combination))[:, 0]
        thresholds = torch.tensor([half.rule.threshold])
        areas.append(box_areas(maps, thresholds)[:, 0].numpy())
        chosen_on = one.first if number == 0 else ~one.first
        trial = half.trial
        share = float(trial.hits(half.rule.combination)[chosen_on][:, half.rule.place].mean())
        iou = trial.sweeps[half.rule.combination].largest_iou[:, half.rule.place]
        for image in images.tolist():
            pairs = [pair for pair in fitting.get(image, []) if int(top1[image]) in one.class_ids[pair]]
            scores.append(share * float(probs[image]))
            right.append(any(iou[pair] >= IOU_DELTA for pair in pairs))
    both = np.array(right, dtype=np.bool_)
    raw = np.concatenate([probs[~of_image], probs[of_image]])
    return {
        "boxes of the most probable class over 90 % of the picture": float((np.concatenate(areas) > LARGE).mean()),
        "box_score: ECE, c from the other half": expected_calibration_error(reliability(np.array(scores), both)),
        "class_prob alone: ECE": expected_calibration_error(reliability(raw, both)),
        "right boxes of the most probable class": float(both.mean()),
        "classes under min_prob among the most probable": float((probs < MIN_PROB).mean()),
    }


command = benchmark(
    "foreground",
    "Score boxes of fused and of plain maps; nothing is chosen on pictures that are scored.",
    ForegroundBenchmark,
    measure,
    "--model mobilenet_v2 --weights FILE --images A --truth A.csv --other B --other-truth B.csv",
)

if __name__ == "__main__":
    main(command)
