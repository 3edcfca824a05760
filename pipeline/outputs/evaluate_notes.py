"""The notes beside the scores of an output: which figures are left out and why, and what the other figures count."""

from collections.abc import Collection, Iterator

import numpy as np

from pipeline.arrays.metrics import Ints
from pipeline.outputs.truth_join import Match
from pipeline.storage.truth.truth import Truth
from schemas.runs import RunManifest

UNRANKED = np.iinfo(np.int64).max
"""The rank of a pair whose class has no row in the output."""


def is_heuristic(run: RunManifest) -> bool:
    """Tell whether the run's boxes are the heuristic's five an image, not one for each class and threshold."""
    return "boxes" in run.settings["outputs"] and run.settings.get("box_rule") == "heuristic"


def is_regressed(run: RunManifest) -> bool:
    """Tell whether the run's boxes are those of a box head, one an image."""
    return "boxes" in run.settings["outputs"] and run.settings.get("method") == "regress"


def top5_is_known(run: RunManifest, rank: Ints) -> bool:
    """Tell whether a class without a row is certainly not among the first five; ``rank`` (P,) of the pairs."""
    every_class = "heatmaps" in run.settings["outputs"] or (is_regressed(run) and not run.settings["min_area"])
    deep = run.settings["topk"] >= min(5, run.lineage.classes) and every_class
    return deep or bool((rank != UNRANKED).all())


def notes(match: Match, rank: Ints, truth: Truth, labels: Collection[str], *, has_masks: bool) -> Iterator[str]:
    """Yield one sentence for each note on the scores.

    ``rank`` (P,) int64 holds the rank of each pair's best-ranked class. ``labels`` are the labels of the output's rows.
    """
    missing = len(set(truth.keys)) - match.pairs.n_images
    if missing:
        yield f"{missing} images of the truth are not among the annotated ones and don't count."
    if truth.without_class:
        label = f", or a label that --labels lacks, like {truth.lacking[0]!r}," if truth.lacking else ""
        yield f"{truth.without_class} objects of the truth have no class id{label} and don't count."
    if truth.skipped:
        yield truth.skipped_sentence("the truth")
    yield from _notes_on_unranked(match, rank, truth, labels)
    if not top5_is_known(match.run, rank):
        yield _note_on_top5(match)
    if has_masks and "heatmaps" not in match.run.settings["outputs"]:
        yield "PxAP is left out: the output has no heatmaps."
    if not len(truth.boxes_xyxy):
        yield (
            "GT-known, localization, mean IoU, MaxBoxAcc, MaxBoxAccV2 and the pointing game are left out: the truth has"
            " masks and no boxes."
        )
    else:
        yield from _notes_on_boxes(match.run)


def _notes_on_unranked(match: Match, rank: Ints, truth: Truth, labels: Collection[str]) -> Iterator[str]:
    unranked = np.flatnonzero(rank == UNRANKED)
    if not len(unranked):
        return
    of_pairs = f"{len(unranked)} of {len(rank)} pairs of image and class have no stored"
    if is_regressed(match.run):
        yield (
            f"{of_pairs} box of their class and count as wrong in accuracy and localization; the other figures score"
            " their image's box, whatever the class."
        )
    else:
        yield (
            f"{of_pairs} map or box of their class and count as wrong; annotate with --classes to have them beside the"
            " top-k."
        )
    # The record of a run has the labels' digest only, so a label without a row may be a class all the same.
    named = [truth.labels[old] for old in match.known[unranked] if not truth.class_ids[old]]
    unknown = [label for label in named if label not in labels]
    if unknown:
        yield (
            f"{len(unknown)} of these pairs have a label that no row of the output has, like {unknown[0]!r}. Where the"
            " network has no such class, --classes can't help; with --labels, a file of the network's classes, such"
            " objects don't count."
        )


def _note_on_top5(match: Match) -> str:
    has_localization = "boxes" in match.run.settings["outputs"] and len(match.pairs.boxes) > 0
    heuristic = is_heuristic(match.run)
    both = has_localization and not heuristic
    left_out = (
        "Top-5 accuracy and localization are left out: they need" if both else "Top-5 accuracy is left out: it needs"
    )
    deep = "--topk 5 or more and no --min-area" if is_regressed(match.run) else "heatmaps with --topk 5 or more"
    return f"{left_out} {deep}, or --classes."


def _notes_on_boxes(run: RunManifest) -> Iterator[str]:
    least = run.settings.get("min_prob", 0.0)
    if least and "boxes" in run.settings["outputs"]:
        yield (
            f"Classes under --min-prob {least:g} have no box, but for the most probable one and those that --classes"
            " names, and count as wrong in GT-known, top-5 localization and mean IoU; --min-prob 0 gives each one."
        )
    if is_heuristic(run):
        yield (
            "Top-5 localization counts the heuristic's five boxes of an image. GT-known, top-1 localization and mean"
            " IoU are left out: they need one box a class, as --box-rule paper cuts."
        )
    if "boxes" not in run.settings["outputs"]:
        yield "GT-known, localization and mean IoU are left out: the output has no boxes."
    if is_regressed(run):
        yield (
            "The boxes are regressed, by a head that was trained with boxes: one an image, whatever the class. GT-known"
            " and mean IoU are this box's; MaxBoxAcc and MaxBoxAccV2 are its accuracy, without a sweep over thresholds;"
            " the pointing game is left out."
        )
    elif "heatmaps" not in run.settings["outputs"]:
        yield "MaxBoxAcc, MaxBoxAccV2 and the pointing game are left out: the output has no heatmaps."
