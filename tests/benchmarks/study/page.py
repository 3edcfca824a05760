"""Write the study's page: a table of numbers, a paragraph for each claim, the conditions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays.metrics import CENTRAL_SHARE, IOU_DELTA, central_boxes, paired_iou
from pipeline.images.synthetic.drawings import CLASSES
from tests.benchmarks.study.claims import CLAIMS, Judged, Results, judge
from tests.benchmarks.study.clutter import LEAST_SEEN
from tests.benchmarks.study.intervals import Floats, MeanInterval, mean_of
from tests.benchmarks.study.results import Result
from tests.benchmarks.study.scene_sets import SceneSet
from tests.benchmarks.study.study_config import StudyConfig
from tests.benchmarks.study.study_networks import ALEXNET_CELLS, RATES, StudyNetwork, Way

COLUMNS = (
    "network",
    "boxes by",
    "seeds",
    "top-1 error, %",
    "the same with hints, %",
    "MaxBoxAcc, %",
    "MaxBoxAccV2, %",
    "GT-known at 20 %, %",
    "mean IoU at 20 %",
    "extent at 20 %",
    "pointing game, %",
)
MEASURES = ("max_box_acc", "max_box_acc_v2", "gt_known_at_20", "mean_iou_at_20", "extent_at_20", "pointing_game")


_ABOUT_THE_NUMBERS = (
    "In brackets: 95 % intervals of a bootstrap over seeds and test scenes together, over scenes alone where a network"
    " has one seed. study.json has each seed's own values. With hints: on other scenes, whose backgrounds go with the"
    " class as in training. The class whose map is cut is the scene's label, whatever the network takes it for."
    " MaxBoxAcc is the share of scenes whose box has IoU ≥ 0.5 with the true one, cut at the threshold that is best on"
    " other scenes; V2 is the mean over IoU 0.3, 0.5 and 0.7 with the best of all components. At 20 %: the paper's"
    " rule. Extent: area of that box over the true one's, ideally 1. The centred box covers"
    f" {CENTRAL_SHARE:.0%} of each side. Boxes by regress come from a head that learned from true boxes; no threshold"
    " concerns them."
)


@dataclass(frozen=True)
class Study:
    """The results of all finished trainings."""

    config: StudyConfig
    columns: tuple[str, ...]
    rows: list[list[str]]
    claims: list[Judged]
    unlearned: list[str]
    """Names of the trainings whose classes ended no better than chance."""
    numbers: dict[str, Any]
    """All figures for study.json."""


def summarize(config: StudyConfig, entries: tuple[StudyNetwork, ...], results: Results, test: SceneSet) -> Study:
    """Return the table, claims and numbers of the finished trainings."""
    sizes = np.full((len(test), 2), float(test.pixels.shape[1]))
    central = paired_iou(central_boxes(sizes), test.boxes)
    right = (central >= IOU_DELTA).astype(np.float64)
    rows, networks = [], []
    for entry in (entry for entry in entries if entry.key in results):
        trainings = results[entry.key]
        figures = {way: _measures(trainings, way) for way in entry.ways}
        error, hinted = (mean_of([getattr(one, name) for one in trainings]) for name in ("wrong", "wrong_hinted"))
        networks.append(_numbers(entry, trainings, error, hinted, figures))
        for way, found in figures.items():
            shown = [_percent(error), _percent(hinted), *(_shown(name, found[name]) for name in MEASURES)]
            rows.append([entry.title, way, str(len(trainings)), *shown])
    baseline = mean_of([right]), mean_of([central])
    centred = [_percent(baseline[0]), "", _percent(baseline[0]), _plain(baseline[1]), "", ""]
    rows.append(["centred box", *[""] * 4, *centred])
    judged = [judge(claim, _learned(results), right) for claim in CLAIMS]
    numbers = {
        "config": config.settings(),
        "networks": networks,
        "centred_box": {"max_box_acc": baseline[0]._asdict(), "mean_iou": baseline[1]._asdict()},
        "claims": [_claim_numbers(one) for one in judged],
    }
    unlearned = [
        f"{one.key} (seed {one.seed})" for trainings in results.values() for one in trainings if _by_chance(one)
    ]
    numbers["no_better_than_chance"] = unlearned
    return Study(config, COLUMNS, rows, judged, unlearned, numbers)


def write(study: Study, folder: Path) -> None:
    """Write study.md and study.json into ``folder``."""
    (folder / "study.md").write_text(markdown(study), encoding="utf-8")
    (folder / "study.json").write_text(json.dumps(study.numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def markdown(study: Study) -> str:
    """Return the page as Markdown."""
    claims = [_paragraph(number, judged) for number, judged in enumerate(study.claims, 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (study.columns, ["---"] * len(study.columns), *study.rows)]
    return "\n".join(
        [
            "# The CAM paper's claims on cluttered scenes",
            "",
            "Written by `python -m tests.benchmarks.study`; every number and verdict below comes from its trainings.",
            "",
            *claims,
            _about_extents(study.numbers["networks"]),
            "",
            "## Numbers",
            "",
            *lines,
            "",
            _ABOUT_THE_NUMBERS,
            "",
            _unlearned(study.unlearned),
            "",
            "![maps of the networks side by side](study.png)",
            "",
            "Rows are test scenes; green dashes are the true box, orange is the box at 20 % (or the learned one).",
            "",
            "## Conditions",
            "",
            *_conditions(study.config),
            "",
        ]
    )


def _by_chance(result: Result) -> bool:
    """Return whether the interval of a training's top-1 error reaches the error of a random guess."""
    return mean_of([result.wrong]).high >= 1 - 1 / len(CLASSES)


def _about_extents(networks: list[dict[str, Any]]) -> str:
    """Return a sentence on whether GMP's boxes are parts of objects or only smaller; extents alone do not show this."""
    maxed = [one for one in networks if one["pooling"] == "gmp"]
    large = [one["title"] for one in maxed if one["ways"]["cam"]["extent_at_20"]["low"] > 1]
    if not large:
        return "To claim 3: no GMP network's boxes at 20 % are certainly larger than the objects."
    return (
        f"To claim 3: smaller boxes are not yet parts. Those of {len(large)} of {len(maxed)} GMP networks"
        f" ({', '.join(large)}) are on average still larger than the true ones."
    )


def _learned(results: Results) -> Results:
    """Return the trainings that ended better than chance; entries without such a training are left out."""
    learned = {key: [one for one in trainings if not _by_chance(one)] for key, trainings in results.items()}
    return {key: trainings for key, trainings in learned.items() if trainings}


def _unlearned(trainings: list[str]) -> str:
    if not trainings:
        return "Every training ended better than chance at the classes."
    return f"No better than chance at the classes, hence not to be read as networks: {', '.join(trainings)}."


def _conditions(config: StudyConfig) -> list[str]:
    return [
        f"- {config.scenes} scenes of {config.size}×{config.size} pixels to learn from, ten classes. Each has an object"
        " of its label and one or two smaller ones of other classes over or under it, which hide up to"
        f" {1 - LEAST_SEEN:.0%} of it. The true box is the extent of what is seen of it.",
        f"- Each class has a kind of background of its own: {config.correlation:.0%} of its training scenes have it,"
        " the others any of the ten. In test scenes backgrounds say nothing of the class.",
        f"- {config.tests} test scenes, as many others to choose thresholds. All seeds share the scenes; first values,"
        " order and mirroring differ.",
        f"- Width {config.width:g}, {config.epochs} epochs, batches of {config.batch_size}, AdamW from random values."
        f" The highest rate is {config.lr:g} for every form of VGG and NIN, {RATES['googlenet']:g} times that for"
        f" GoogLeNet, {RATES['alexnet']:g} times for AlexNet.",
        f"- Networks that shrink their input more than VGG does see the scenes enlarged, until their maps have"
        f" {config.cells} cells a side, AlexNet's {ALEXNET_CELLS:g} times as many: its convolutions"
        " are padded, its poolings are not, so that its outermost cells lie farther inside than half a cell from the"
        " border, where the box code assumes them: its boxes reach too far outwards, which may weigh on its rows.",
        "- The defaults of rates, scenes and AlexNet's cells come from single trials that were scored on the test"
        " scenes.",
    ]


def _paragraph(number: int, judged: Judged) -> str:
    """Return a claim with its verdict, and below it each difference with its meaning."""
    missing = f" Not trained, or not better than chance: {', '.join(judged.missing)}." if judged.missing else ""
    lines = [f"**Claim {number}: {judged.verdict}.** {judged.claim.text}.{missing}", ""]
    for about, difference in judged.differences:
        said = "yes" if difference.low > 0 else "no" if difference.high < 0 else "undecided"
        lines.append(f"- {said}: {about}: {_signed(difference)}")
    return "\n".join([*lines, ""])


def _measures(trainings: Sequence[Result], way: Way) -> dict[str, MeanInterval | None]:
    """Return the mean of each of MEASURES; None where the way of localizing has no map and the measure needs one."""
    found = [result.found[way] for result in trainings]
    values: dict[str, list[Floats]] = {
        "max_box_acc": [one.right for one in found],
        "max_box_acc_v2": [one.right_v2 for one in found],
        "gt_known_at_20": [(one.iou >= IOU_DELTA).astype(np.float64) for one in found],
        "mean_iou_at_20": [one.iou for one in found],
        "extent_at_20": [one.extent for one in found],
        "pointing_game": [one.pointed for one in found if one.pointed is not None],
    }
    return {name: mean_of(arrays) if arrays else None for name, arrays in values.items()}


def _numbers(
    entry: StudyNetwork,
    trainings: Sequence[Result],
    error: MeanInterval,
    hinted: MeanInterval,
    figures: dict[Way, dict[str, MeanInterval | None]],
) -> dict[str, Any]:
    ways = {
        way: {
            **{name: estimate and estimate._asdict() for name, estimate in found.items()},
            "max_box_acc_of_seeds": [float(one.found[way].right.mean()) for one in trainings],
            "thresholds_of_seeds": [one.found[way].threshold for one in trainings],
        }
        for way, found in figures.items()
    }
    return {
        "key": entry.key,
        "title": entry.title,
        "network": entry.network,
        "pooling": entry.pooling,
        "seeds": [one.seed for one in trainings],
        "seconds": [one.seconds for one in trainings],
        "parameters": trainings[0].parameters,
        "input_side_px": trainings[0].side,
        "map_hw": trainings[0].map_hw,
        "losses_of_seeds": [one.losses for one in trainings],
        "top1_error": error._asdict(),
        "top1_error_of_seeds": [float(one.wrong.mean()) for one in trainings],
        "top1_error_with_hints": hinted._asdict(),
        "ways": ways,
    }


def _claim_numbers(judged: Judged) -> dict[str, Any]:
    return {
        "claim": judged.claim.text,
        "verdict": judged.verdict,
        "differences": [{"of": about, **difference._asdict()} for about, difference in judged.differences],
        "missing": judged.missing,
    }


def _shown(name: str, estimate: MeanInterval | None) -> str:
    if estimate is None:
        return ""
    return _plain(estimate) if name in {"mean_iou_at_20", "extent_at_20"} else _percent(estimate)


def _percent(estimate: MeanInterval) -> str:
    value, low, high = (100 * number for number in estimate)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _plain(estimate: MeanInterval) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _signed(estimate: MeanInterval) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
