"""What all recipes do: annotate pictures once, fit a head for each seed, and score where its maps point.

A map points at the centre of mass around its greatest cell. Figures are means over the test pictures of all seeds, with
95 % intervals by resampling these pictures.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from jobs.terminal.console import Screen
from schemas.options.config import JobConfig, option, required

if TYPE_CHECKING:
    from pipeline.models.weights.head_file import Head

Pixels = NDArray[np.uint8]
RESAMPLES = 2000
REACH = 1 / 7
"""How far around its greatest cell a map is looked at to say where it points, in shares of its sides.

Chosen on the pictures that heads for words were fitted on (14x14 cells of 448 pixels, one seed): the greatest cell's
centre lay in .61 of them on a word, the centre of mass one cell around it in .72, two cells around it in .79.
"""
_SHOWN = 24


class RecipeConfig(JobConfig):
    """The options of a recipe."""

    out: str = required("local folder for pictures, tables, heads, results.json and the page", flag=True)
    model: str = option("mobilenet_v2", "network by name", "Options")
    weights: str = option("DEFAULT", "its weights, as for `camlake annotate`", "Options")
    seeds: int = option(3, "how often pictures are drawn and a head is fitted", "Options", ge=1, le=20)
    train: int = option(100, "scenes of a seed for the fit", "Options", ge=10)
    test: int = option(70, "scenes of a seed for the test", "Options", ge=10)
    image_size: int = option(224, "side of the network's input in pixels", "Options", ge=96, le=1024)


@dataclass
class RecipePictures:
    """The pictures of all seeds on the disk."""

    folder: Path
    names: list[list[str]] = field(default_factory=list)
    """For each seed the files that its head is fitted on."""
    positive: set[str] = field(default_factory=set)
    """The files that show the concept."""
    boxes: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """(N, 4) half-open pixels, of each positive file of the tests."""
    tests: list[list[str]] = field(default_factory=list)
    """For each seed the files that it is tested on."""

    @classmethod
    def under(cls, out: str) -> "RecipePictures":
        """Return no pictures yet; they will lie in the folder ``pictures`` under ``out``, which is made."""
        folder = Path(out) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def add_seed(self, names: list[str], tests: list[str]) -> None:
        """Add a seed with the files that its head is fitted on, and those that it is tested on."""
        self.names.append(names)
        self.tests.append(tests)

    def save(self, name: str, pixels: Pixels) -> str:
        """Write a picture as JPEG and return its file name."""
        cv2.imwrite(
            str(self.folder / f"{name}.jpg"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95]
        )
        return f"{name}.jpg"

    def size_hw(self, name: str) -> tuple[int, int]:
        """Return height and width of a picture."""
        pixels = cv2.imread(str(self.folder / name))
        assert pixels is not None
        return pixels.shape[0], pixels.shape[1]


@dataclass(frozen=True)
class PictureResult:
    """What the head of a seed says of one of its test pictures."""

    name: str
    seed: int
    prob: float
    heat: NDArray[np.float32]
    size_hw: tuple[int, int]

    @property
    def point_xy(self) -> tuple[float, float]:
        """Where the map points, in pixels: the centre of mass around its greatest cell.

        A cell is wider than a word is high, so its centre alone misses. Each cell at most REACH of the map's sides
        away, and each neighbour, counts by what it has above the middle of the map's range.
        """
        shape, around = self.heat.shape, []
        for place, side in zip(np.unravel_index(int(self.heat.argmax()), shape), shape, strict=True):
            reach = max(1, round(REACH * side))
            around.append(slice(max(0, int(place) - reach), min(side, int(place) + reach + 1)))
        mass = np.maximum(self.heat - (self.heat.max() + self.heat.min()) / 2, 0)[tuple(around)].astype(np.float64)
        mass = mass if mass.any() else np.ones_like(mass)
        y, x = ((np.mgrid[tuple(around)] + 0.5) * mass / mass.sum()).sum(axis=(1, 2))
        return float(x) / shape[1] * self.size_hw[1], float(y) / shape[0] * self.size_hw[0]

    @property
    def box(self) -> NDArray[np.float64] | None:
        """The box (4,) that is cut from the map as annotate cuts it, in half-open pixels; None where there is none."""
        from pipeline.models.localize.box_rules import BoxRule, boxes_in_pixels, cut_maps
        from schemas.options.box_rules import AUTO_THRESHOLD

        rule, zero = BoxRule("auto", (AUTO_THRESHOLD,), 0.0), np.zeros(1, np.int64)
        found = boxes_in_pixels(rule, [cut_maps(rule, self.heat[None], zero, zero, np.array([self.size_hw]))]).xyxy
        return found[0].astype(np.float64) if len(found) else None


def annotated(pictures: Path, out: Path, config: RecipeConfig, screen: Screen) -> None:
    """Annotate a folder of pictures with features and feature maps."""
    from pipeline.graph.annotate.driver import annotate
    from schemas.options.annotate import AnnotateConfig

    given: dict[str, Any] = {"input": str(pictures), "out": str(out), "model": config.model, "engine": "local"}
    given |= {"weights": config.weights, "image_size": config.image_size, "foreground": "off"}
    given |= {"outputs": "features,feature_maps"}
    annotate(AnnotateConfig.resolve(given), screen)


def fitted(out: Path, labels: Path, rows: Sequence[tuple[str, str]], screen: Screen) -> "Head":
    """Write ``rows``, files and their labels, to ``labels``; return a head fitted on them and an output's features."""
    from pipeline.outputs.heads.features import open_features
    from pipeline.outputs.heads.head_jobs import fit
    from pipeline.storage.truth.image_labels import read_image_labels
    from schemas.options.config import StorageConfig

    with labels.open("w", newline="", encoding="utf-8") as sink:
        csv.writer(sink).writerows([("file", "label"), *rows])
    source = open_features(str(out), StorageConfig(), None)
    return fit(source, read_image_labels(str(labels), StorageConfig()), "logistic", screen)


def look(
    pictures: RecipePictures, label: str, config: RecipeConfig, screen: Screen, *, everywhere: bool = False
) -> list[PictureResult]:
    """Annotate all pictures, fit a head of each seed, and return what the heads say of their test pictures.

    ``everywhere``: of the pictures that they were fitted on too.
    """
    from pipeline import camlake
    from pipeline.models.weights.head_file import head_bytes

    out, found = Path(config.out), []
    annotated(pictures.folder, out / "labels", config, screen)
    for seed, names in enumerate(pictures.names):
        labels = out / f"labels-{seed}.csv"
        rows = [(name, label if name in pictures.positive else "") for name in names]
        head = fitted(out / "labels", labels, rows, screen)
        (out / f"head-{seed}.safetensors").write_bytes(head_bytes(head))
        own = set(pictures.tests[seed]) | (set(names) if everywhere else set())
        with camlake.open(str(out / "labels")) as lake:
            for one in lake.maps(head):
                name = one.uri.rpartition("/")[2]
                if name in own:
                    found.append(PictureResult(name, seed, one.prob, one.heat, pictures.size_hw(name)))
    return found


def mean(values: NDArray[Any]) -> list[float]:
    """Return the mean of ``values`` with its 95 % interval by resampling."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(values.astype(np.float64), (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return [round(float(one), 4) for one in (values.mean(), low, high)]


def points_in(xy: tuple[float, float], boxes_xyxy: NDArray[np.float64]) -> bool:
    """Return whether a point lies in one of the boxes (N, 4)."""
    x0, y0, x1, y1 = boxes_xyxy.T
    return bool(((x0 <= xy[0]) & (xy[0] < x1) & (y0 <= xy[1]) & (xy[1] < y1)).any())


def scores(
    found: Sequence[PictureResult], pictures: RecipePictures, baselines: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """Return the figures of all seeds; ``baselines``: points in shares of width and height that need no head."""
    from pipeline.arrays.metrics import paired_iou
    from pipeline.arrays.ranking import roc_auc

    with_it = [one for one in found if one.name in pictures.positive]
    hits = np.array([points_in(one.point_xy, pictures.boxes[one.name]) for one in with_it])
    figures: dict[str, Any] = {"test pictures with it": len(with_it), "pointing": mean(hits)}
    for name, (x, y) in baselines.items():
        fixed = np.array(
            [points_in((x * one.size_hw[1], y * one.size_hw[0]), pictures.boxes[one.name]) for one in with_it]
        )
        figures |= {f"pointing of {name}": mean(fixed), f"pointing − {name}": mean(hits.astype(int) - fixed)}
    best = []
    for one in with_it:
        box, truth = one.box, pictures.boxes[one.name]
        around = np.r_[truth[:, :2].min(axis=0), truth[:, 2:].max(axis=0)][None]
        best.append(0.0 if box is None else float(paired_iou(box[None], around)[0]))
    figures["IoU of the box with the extent of all true boxes"] = mean(np.array(best))
    aucs, by_seed = {}, {}
    for seed in sorted({one.seed for one in found}):
        own = [one for one in found if one.seed == seed]
        truth_of = np.array([one.name in pictures.positive for one in own])
        auc = float(roc_auc(np.array([one.prob for one in own]), truth_of, np.ones((1, len(own))))[0])
        aucs[f"seed {seed}"] = round(auc, 4)
        by_seed[f"seed {seed}"] = round(float(hits[[one.seed == seed for one in with_it]].mean()), 4)
    return figures | {"AUC": aucs, "pointing of each seed": by_seed}


def report(
    title: str,
    found: Sequence[PictureResult],
    pictures: RecipePictures,
    figures: dict[str, Any],
    config: RecipeConfig,
    screen: Screen,
    value: str = "the head's probability",
) -> None:
    """Print the figures, and write results.json and page.html, which shows test pictures with maps and peaks.

    ``value`` says in words what ``PictureResult.prob`` is.
    """
    from jobs.benchmark.machine import machine_facts
    from pipeline.outputs.heads.top import Ranked
    from pipeline.outputs.heads.top_page import page

    shown = {name: _in_words(value) for name, value in figures.items()}
    screen.table(title, ["figure", "value"], [[name, value] for name, value in shown.items()])
    out = Path(config.out)
    options = config.model_dump(exclude={"out"})
    document = {"recipe": title, "config": options, "machine": machine_facts(), "figures": figures}
    (out / "results.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sections = {}
    for name, wanted in (("test pictures that show it", True), ("test pictures that don't", False)):
        own = [one for one in found if (one.name in pictures.positive) == wanted]
        if not own:
            continue
        own = own[:: max(1, len(own) // _SHOWN)][:_SHOWN]
        sections[name] = [Ranked(one.name, one.name, one.prob, "", one.heat, _spot(one)) for one in own]
    ranked = list(sections.values())
    seen = {
        one.uri: np.asarray(cv2.imread(str(pictures.folder / one.uri), cv2.IMREAD_COLOR_RGB), np.uint8)
        for some in ranked
        for one in some
    }
    notes = [f"{name}: {value}" for name, value in shown.items()]
    notes.append(f"The value is {value}, the small square is where the map points.")
    (out / "page.html").write_bytes(page(title, notes, list(sections), ranked, seen))
    screen.result(f"{out / 'page.html'}, {out / 'results.json'}", **figures)


def _spot(one: PictureResult) -> tuple[float, float, float, float]:
    """Return a square as large as a cell around the point that a map points at, in pixels."""
    (x, y), (rows, columns) = one.point_xy, one.heat.shape
    half_w, half_h = one.size_hw[1] / columns / 2, one.size_hw[0] / rows / 2
    return x - half_w, y - half_h, x + half_w, y + half_h


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return ", ".join(f"{name} {one:.3f}" for name, one in value.items()) if isinstance(value, dict) else str(value)
