"""``camlake foreground``: learns a network's figure/ground direction from photographs, and checks it against truth."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.annotate.foreground.figure_sample import Looked, learn, look_at
from pipeline.annotate.image_reader import ImageReader
from pipeline.annotate.model import Model
from pipeline.arrays.figure_ground import FOLDS, Direction, area_matched, box_areas, fuse
from pipeline.arrays.figures import THRESHOLDS, Pairs
from pipeline.arrays.foreground_scores import (
    COMBINATIONS,
    Chosen,
    Comparison,
    Trial,
    best_fitting,
    centre_prior,
    of_means,
)
from pipeline.arrays.metrics import IOU_DELTA, Bools, Ints
from pipeline.models.localize.foreground import Foreground, stride16_name
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.truth.truth import Truth
from schemas.errors import InputError, ModelError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.box_rules import Combination

LEAST_PAIRS = 20
"""Pairs of image and class that each half needs for a check against truth."""


@dataclass(frozen=True)
class Learned:
    """A direction and the images that it was learned from."""

    foreground: Foreground
    direction: Direction
    looked: Looked


@dataclass(frozen=True)
class Check:
    """The gain of a direction: each half of the pairs is scored with the rule that was chosen on the other half."""

    foreground: Foreground
    """The direction; its card has the rule that is best for all pairs."""
    plain_threshold: float
    """The threshold of plain maps that is best for all pairs."""
    pairs: int
    comparisons: tuple[Comparison, ...]
    """Comparisons with plain class maps; the first one is of GT-known."""
    against_centre: Comparison
    """Comparison of GT-known with maps that are fused with a centre prior instead of the image's figure map."""

    @property
    def verdict(self) -> str:
        """A sentence that says whether to use the direction."""
        low, high = self.comparisons[0].interval
        if low > 0 and self.against_centre.interval[0] > 0:
            return "use it: it gains here, and more than a centre prior does"
        if low > 0:
            return "it gains here, but not certainly more than a centre prior does: check it on pictures of yours"
        if high < 0:
            return "do not use it: it loses here"
        return "not proven here: the interval of its gain holds 0"


def learn_from(config: AnnotateConfig, model: Model, count: int, *, stable: bool = True) -> Learned:
    """Return the direction learned from the ``count`` images of the input with the lowest image ids.

    Raises ModelError where the network has no tensor of stride 16 and, if ``stable``, where the direction is not
    stable. Raises InputError where too few images can be read.
    """
    name = stride16_name(model.network)
    if name is None:
        raise ModelError(f"{model.network.name} has no tensor of stride 16; its boxes are cut from the maps alone")
    plan = _sample(config, count)
    reader = ImageReader(config.storage, config.out, config.max_bytes)
    looked = look_at(config, model, reader, plan, name)
    if len(looked.uris) < FOLDS:
        raise InputError(f"{len(looked.uris)} of {len(plan)} images can be used; allowed: {FOLDS} or more, better 300")
    foreground, direction = learn(looked, model, name)
    if stable and direction.refusal:
        raise ModelError(f"the direction of {name} in {model.network.name} is not stable: {direction.refusal}")
    return Learned(foreground, direction, looked)


def _sample(config: AnnotateConfig, count: int) -> pa.Table:
    """Return the inputs (PLAN) with the ``count`` lowest image ids, which are hashes: a fair and repeatable sample."""
    listing = list_inputs(config.input, config, how=config.input_options)
    kept: list[tuple[str, dict[str, Any]]] = []
    schema = None
    for batch in listing.batches:
        schema = batch.schema
        rows = ((row["image_id"], row) for row in batch.to_pylist() if row["reason_code"] is None)
        kept = heapq.nsmallest(count, [*kept, *rows], key=lambda item: item[0])
    if not kept:
        raise InputError("no image in the input")
    found = dict(kept)
    return pa.Table.from_pylist(list(found.values()), schema=schema)


def area_matched_rule(learned: Learned, combination: Combination) -> Foreground:
    """Return the direction with the threshold at which the boxes' mean area is that of the best boxes elsewhere."""
    looked, thresholds = learned.looked, torch.tensor(THRESHOLDS[1:], dtype=torch.float32)
    areas = torch.cat([box_areas(maps, thresholds) for maps in _fused(learned, combination)])
    threshold = round(area_matched(areas, thresholds), 2)
    facts = learned.foreground.card.facts | {"threshold by": f"mean area of the boxes of {len(looked.uris)} images"}
    card = replace(learned.foreground.card, combination=combination, threshold=threshold, facts=facts)
    return Foreground(card, learned.foreground.mean, learned.foreground.vector)


def _fused(learned: Learned, combination: Combination, at_once: int = 32) -> Iterator[Tensor]:
    looked = learned.looked
    for at in range(0, len(looked.uris), at_once):
        figure = learned.foreground.maps(looked.stride16[at : at + at_once].float())
        yield fuse(looked.class_maps[at : at + at_once, None], figure, combination)[:, 0]


def check(learned: Learned, model: Model, truth: Truth, combinations: tuple[Combination, ...] = COMBINATIONS) -> Check:
    """Return the gain of the direction: each half of the pairs chooses a rule and a threshold for the other half.

    Raises UsageError where the truth has fewer than LEAST_PAIRS pairs in one of the halves.
    """
    pairs, class_ids, image = known_pairs(learned.looked, model, truth)
    first = in_first_half([learned.looked.uris[place] for place in image])
    if min(first.sum(), (~first).sum()) < LEAST_PAIRS:
        raise UsageError(f"--truth: {len(image)} pairs on the images learned from; allowed: {LEAST_PAIRS} in each half")
    class_maps = maps_of_pairs(learned.looked, model, class_ids, image)
    every = learned.foreground.maps(learned.looked.stride16.float())
    figure = every[torch.from_numpy(image)]
    trial = Trial(pairs, class_maps, figure, combinations)
    fused, plain = _both_ways(trial, first, combinations), _both_ways(trial, first, (None,))
    everyone = np.ones(len(image), dtype=np.bool_)
    final, plain_final = trial.choose(everyone, combinations), trial.choose(everyone, (None,))
    assert final.combination is not None
    comparisons = tuple(trial.compare(fused, plain, first, final.combination))
    prior = centre_prior(every).expand(len(image), -1, -1)
    control = Trial(pairs, class_maps, prior, tuple({one.combination for one in fused if one.combination}))
    centre = [control.choose(own, (one.combination,)) for one, own in zip(fused, (first, ~first), strict=True)]
    own_iou, centre_iou = trial.iou(fused, first), control.iou(centre, first)
    against = of_means("GT-known against a centre prior", own_iou >= IOU_DELTA, centre_iou >= IOU_DELTA, image)
    checked = replace(
        learned.foreground.card,
        combination=final.combination,
        threshold=round(final.threshold, 2),
        right_share=round(comparisons[0].fused, 3),
        facts=learned.foreground.card.facts | _facts(comparisons, against, plain_final.threshold, len(image)),
    )
    foreground = Foreground(checked, learned.foreground.mean, learned.foreground.vector)
    return Check(foreground, plain_final.threshold, len(image), comparisons, against)


def _both_ways(trial: Trial, first: Bools, combinations: Sequence[Combination | None]) -> list[Chosen]:
    """Return the rule chosen on the pairs ``first`` and the rule chosen on the others."""
    return [trial.choose(own, combinations) for own in (first, ~first)]


def _facts(
    comparisons: tuple[Comparison, ...], against: Comparison, plain_threshold: float, pairs: int
) -> dict[str, Any]:
    found: dict[str, Any] = {"pairs": pairs, "threshold of plain maps": round(plain_threshold, 2)}
    for one in (*comparisons, against):
        interval = [round(end, 4) for end in one.interval]
        found[one.name] = {"fused": round(one.fused, 4), "other": round(one.plain, 4), "gain, 95 %": interval}
    return found


def known_pairs(looked: Looked, model: Model, truth: Truth) -> tuple[Pairs, list[tuple[int, ...]], Ints]:
    """Return the P pairs of the truth on the images, the classes that fit each pair, and (P,) each pair's image."""
    place = truth.match(looked.uris)
    named: dict[str, tuple[int, ...]] = {}
    for class_id, label in enumerate(model.weights.labels):
        named[label] = (*named.get(label, ()), class_id)
    fitting = [ids or named.get(label, ()) for ids, label in zip(truth.class_ids, truth.labels, strict=True)]
    known = np.array([at >= 0 and bool(ids) for at, ids in zip(place, fitting, strict=True)], dtype=np.bool_)
    number = np.where(known, known.cumsum() - 1, -1)
    owner = number[truth.owner]
    boxes = np.argsort(owner, kind="stable")[(owner < 0).sum() :]
    image = place[known]
    pairs = Pairs(
        n_images=len(looked.uris),
        image=image,
        sizes_wh=looked.sizes_hw[image][:, ::-1].astype(np.float64),
        boxes=truth.boxes_xyxy[boxes],
        owner=owner[boxes],
        convention="half-open",
    )
    return pairs, [ids for ids, kept in zip(fitting, known, strict=True) if kept], image


def maps_of_pairs(looked: Looked, model: Model, class_ids: list[tuple[int, ...]], image: Ints) -> Tensor:
    """Return (P, h, w): for each pair the map of the fitting class with the highest logit."""
    own = torch.from_numpy(image)
    chosen = best_fitting(class_ids, looked.logits[own])[:, None]
    with torch.no_grad():
        return model.network.head.class_maps(looked.features[own], chosen)[:, 0]


def in_first_half(uris: list[str]) -> Bools:
    """Return (I,): whether each image is in the first half, which depends on its file name only."""
    digests = [hashlib.sha256(uri.rsplit("/", 1)[-1].encode()).digest() for uri in uris]
    return np.array([digest[0] % 2 == 0 for digest in digests], dtype=np.bool_)
