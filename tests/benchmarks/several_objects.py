"""Try rules that cut several boxes from one map against the largest component: recall of all objects of a class.

The photographs are annotated once, with the true classes and without a least probability. Then every rule cuts the
stored maps, fused with the figure/ground map as ``--box-rule auto`` fuses them:

- largest: the box of the largest component at a threshold, which is what ``--box-rule auto`` takes.
- components: a box for each component at a threshold whose box has at least a share of the largest box's area.
- peaks: a map for each peak. A cell belongs to the peak that it climbs to. A peak whose prominence (its height above
  the pass to a higher peak) is under a share of the map's maximum counts as a part of that higher peak. Each peak's
  map is cut at a share of the peak's own height.

The photographs are sorted by name. The odd half chooses: for ``largest`` the threshold with the highest recall, for
the others the setting with the highest recall of those that are at least as precise as ``largest``. The even half is
scored. Then the halves change places. A box is right where its IoU with an object is at least 0.5; each object counts
for one box only. Recall is the share of objects with a right box, precision the share of right boxes.

What was tried with MobileNetV2, and what holds (``results/several-objects-*.json``): nothing, so that ``--box-rule``
has no such rule. coco60 has one annotated object of the named class in each of its 60 photographs, so that it can only
show what the additional boxes cost: at the precision of the largest component no rule finds one object more. Of
ilsvrc300's 300 photographs 51 have several objects, 198 together. On all photographs the best setting of the other half
gains 0 or 0.4 points of recall, with intervals that begin at 0. On the 51 photographs alone, for a user who knows that
there are several objects, the gains are 0 to 3.8 points, and precision changes by -4.8 to +2.1 points; no setting that
one half chooses is the choice of the other half too, and no gain is clear in both directions. The maps are too coarse:
the largest component finds 11 to 12 % of these objects, because the map of a class is one blob over its objects.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.console import main
from jobs.suites.machine import Figures
from jobs.suites.steady_rate import SilentReporter
from pipeline.annotate.reporter import Reporter
from pipeline.arrays.boxes import level_boxes
from pipeline.arrays.figures import Pairs
from pipeline.arrays.maps import dequantize
from pipeline.arrays.metrics import IOU_DELTA, Bools, Floats, Ints, bootstrap_interval, iou
from pipeline.graph.annotate.driver import annotate
from pipeline.images.resize import map_to_image_xyxy
from pipeline.models.localize.foreground import foreground_of
from pipeline.outputs import reader as camlake
from pipeline.outputs.truth_join import TRUE_ROWS, matched
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.truth.truth import Truth, read_truth
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from tests.benchmarks.command import TruthConfig, benchmark

CUTS = np.arange(0.2, 0.82, 0.04)
"""Thresholds of all rules."""
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Least areas of a component's box, as shares of the largest one's."""
PROMINENCES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""Least prominences of a peak, as shares of the map's maximum."""


class Cut(NamedTuple):
    """R boxes of all P pairs by one setting of a rule, ordered by pair, the best guess of a pair first."""

    pair: Ints
    """(R,)."""
    xyxy: Floats
    """(R, 4) in pixels."""


class Counts(NamedTuple):
    """What a setting finds for each of P pairs of an image and a class."""

    right: Floats
    """(P,) objects with a right box."""
    boxes: Floats
    """(P,)."""
    objects: Floats
    """(P,)."""

    def recall(self, own: Bools) -> float:
        """Return the recall of the pairs in the mask ``own`` (P,)."""
        return float(self.right[own].sum() / self.objects[own].sum())

    def precision(self, own: Bools) -> float:
        """Return the precision of these pairs; 0 without a box."""
        return float(self.right[own].sum() / max(self.boxes[own].sum(), 1))


class Maps(NamedTuple):
    """The fused maps of the pairs, with the truth of the pairs."""

    fused: NDArray[np.float32]
    """(P, h, w) in [0, 1]."""
    pairs: Pairs
    uris: tuple[str, ...]
    """(P,)."""


def measure(config: TruthConfig, reporter: Reporter) -> Figures:
    """Return recall and precision of each rule on the half that did not choose its setting, and the gains."""
    if not (config.images and config.truth and config.weights):
        raise UsageError("several_objects needs --images, --truth and --weights")
    maps = stored_maps(config, read_truth(config.truth, StorageConfig()))
    rules = {rule: dict(_settings(rule, maps, reporter)) for rule in ("largest", "components", "peaks")}
    names = sorted(set(maps.uris))
    odd = np.array([names.index(uri) % 2 == 1 for uri in maps.uris], np.bool_)
    objects = next(iter(rules["largest"].values())).objects
    found: Figures = {
        "photographs": len(names),
        "pairs of photograph and class": len(objects),
        "objects": int(objects.sum()),
        "pairs with several objects": int((objects > 1).sum()),
    }
    several = objects > 1
    for half, chosen_on in (("even half, chosen on odd", odd), ("odd half, chosen on even", ~odd)):
        of_half = _scored(rules, chosen_on, ~chosen_on, maps)
        if (several & chosen_on).any() and (several & ~chosen_on).any():
            alone = _scored(rules, chosen_on & several, ~chosen_on & several, maps)
            of_half |= {f"pairs with several objects alone: {name}": value for name, value in alone.items()}
        found |= {f"{half}: {name}": value for name, value in of_half.items()}
    for name, value in found.items():
        reporter.say(f"{name}: {value}")
    return found


def _scored(rules: dict[str, dict[str, Counts]], chosen_on: Bools, scored: Bools, maps: Maps) -> Figures:
    """Return the figures of the pairs in the mask ``scored`` (P,), by settings chosen on those in ``chosen_on``."""
    plain = max(rules["largest"], key=lambda setting: rules["largest"][setting].recall(chosen_on))
    base = rules["largest"][plain]
    found: Figures = {"pairs": int(scored.sum()), "objects": int(base.objects[scored].sum())}
    for rule, settings in rules.items():
        fit = [name for name in settings if settings[name].precision(chosen_on) >= base.precision(chosen_on)]
        chosen = plain if rule == "largest" else max(fit, key=lambda name: settings[name].recall(chosen_on), default="")
        if not chosen:
            found[f"{rule}: setting"] = "none is as precise as the largest component"
            continue
        counts = settings[chosen]
        found |= {
            f"{rule}: setting": chosen,
            f"{rule}: recall": counts.recall(scored),
            f"{rule}: precision": counts.precision(scored),
            f"{rule}: boxes a pair": float(counts.boxes[scored].mean()),
        }
        if rule != "largest":
            found |= _gains(rule, counts, base, scored, maps.pairs.image)
    return found


def _gains(rule: str, counts: Counts, base: Counts, scored: Bools, image: Ints) -> Figures:
    """Return the gains in recall and precision against the largest component with paired 95 % intervals."""
    columns = np.stack([counts.right, counts.boxes, base.right, base.boxes, base.objects], axis=1)[scored]

    def recall(means: Floats) -> Floats:
        gain: Floats = (means[..., 0] - means[..., 2]) / means[..., 4]
        return gain

    def precision(means: Floats) -> Floats:
        gain: Floats = means[..., 0] / means[..., 1] - means[..., 2] / means[..., 3]
        return gain

    found: Figures = {}
    for name, gain in (("recall", recall), ("precision", precision)):
        interval = bootstrap_interval(columns, image[scored], gain)
        found[f"{rule}: gain in {name}"] = float(gain(columns.mean(axis=0)))
        found[f"{rule}: gain in {name}, 95 %"] = [round(value, 4) for value in interval]
    return found


def stored_maps(config: TruthConfig, truth: Truth) -> Maps:
    """Annotate the photographs with their true classes; return the fused map of each pair's best-ranked class."""
    with tempfile.TemporaryDirectory() as temporary:
        out = str(Path(temporary) / "out")
        job = AnnotateConfig(
            input=str(config.images),
            out=out,
            model=config.model,
            weights=str(config.weights),
            classes=config.truth,
            precision="fp32" if config.precision == "auto" else config.precision,
            min_prob=0.0,
            engine="local",
        )
        manifest = annotate(job, SilentReporter())
        kept = Path(LakePaths(out).foreground_file(manifest.model))
        if not kept.exists():
            raise UsageError(f"--weights {config.weights}: has no figure/ground direction")
        with camlake.open(out) as lake, matched(lake, truth, None, "half-open") as match:
            return _fused(lake, match.pairs, kept.read_bytes(), str(kept))


def _fused(lake: camlake.Lake, pairs: Pairs, content: bytes, where: str) -> Maps:
    query = f"""SELECT pair, images.uri, heat_h, heat_w, heat_min, heat_max, heat, fg_h, fg_w, fg_min, fg_max, fg
        FROM (SELECT * FROM {TRUE_ROWS.format(rows="heatmaps")}
            QUALIFY row_number() OVER (PARTITION BY pair ORDER BY rank) = 1) AS answer
        JOIN foreground USING (image_id) JOIN images USING (image_id) ORDER BY pair"""
    rows = lake.sql(query).fetchall()
    if [row[0] for row in rows] != list(range(len(pairs.image))):
        raise UsageError("--truth: some of its classes have no stored map")
    foreground = foreground_of(content, where)
    maps = [
        foreground.fused(_map(*row[2:7])[:, None], _map(*row[7:12]))[0, 0].numpy() for row in rows
    ]  # All photographs are squashed to one size, so that all maps have one size.
    return Maps(np.stack(maps), pairs, tuple(row[1] for row in rows))


def _map(height: int, width: int, low: float, high: float, levels: list[int]) -> torch.Tensor:
    """Return a stored map (1, h, w)."""
    stored = np.asarray(levels, np.uint8).reshape(1, height, width)
    return torch.from_numpy(dequantize(stored, np.float32([low]), np.float32([high])))


def _settings(rule: str, maps: Maps, reporter: Reporter) -> Iterator[tuple[str, Counts]]:
    """Yield each setting of a rule, in words, with what it finds."""
    reporter.say(f"cutting by {rule}")
    if rule == "peaks":
        for prominence in PROMINENCES:
            basins = [basins_of(grid, prominence) for grid in maps.fused]
            for cut in CUTS:
                yield (
                    f"prominence {prominence:g}, cut at {cut:.2f} of the peak",
                    _count(_peaks(maps, basins, cut), maps),
                )
        return
    for cut in CUTS:
        every = _components(maps, cut)
        if rule == "largest":
            yield f"cut at {cut:.2f}", _count(_of_share(every, 1.0), maps)
        for share in SHARES if rule == "components" else ():
            yield f"cut at {cut:.2f}, boxes of {share:g} of the largest", _count(_of_share(every, share), maps)


def _components(maps: Maps, cut: float) -> Cut:
    """Return the boxes of all components at a threshold, the largest component of a pair first."""
    fused = torch.from_numpy(maps.fused)
    found = level_boxes(fused, torch.full((len(fused), 1), float(cut)), components="all")
    return Cut(found.map_index.numpy(), _in_pixels(maps, found.boxes_xyxy.numpy(), found.map_index.numpy()))


def _of_share(every: Cut, share: float) -> Cut:
    """Return each pair's first box, and those others that have at least ``share`` of its area; 1 takes the first."""
    _, first = np.unique(every.pair, return_index=True)
    is_first = np.isin(np.arange(len(every.pair)), first)
    areas = (every.xyxy[:, 2:] - every.xyxy[:, :2]).prod(axis=1)
    of_first = areas[first][np.searchsorted(every.pair[first], every.pair)]
    kept = is_first | ((areas >= share * of_first) & (share < 1))
    return Cut(every.pair[kept], every.xyxy[kept])


def _peaks(maps: Maps, basins: list[list[tuple[float, Bools]]], cut: float) -> Cut:
    """Return the box of each peak's own map, cut at a share of the peak's height, the highest peak first."""
    pair = np.array([number for number, own in enumerate(basins) for _ in own], np.int64)
    heights = torch.tensor([height for own in basins for height, _ in own], dtype=torch.float32)
    inside = np.stack([basin for own in basins for _, basin in own])
    own_maps = torch.from_numpy(np.where(inside, maps.fused[pair], 0).astype(np.float32))
    found = level_boxes(own_maps, heights[:, None] * float(cut))
    row = found.map_index.numpy()
    return Cut(pair[row], _in_pixels(maps, found.boxes_xyxy.numpy(), pair[row]))


def basins_of(grid: NDArray[np.float32], prominence: float) -> list[tuple[float, Bools]]:
    """Return the height and the cells (h, w) of each peak of a map in [0, 1], the highest peak first.

    The cells are visited from the highest to the lowest. Each cell joins the highest peak among its eight neighbours
    that were visited before; a cell without such a neighbour is a new peak. Where two peaks meet, the lower one becomes
    a part of the higher one if it is less than ``prominence`` above that cell; otherwise both keep their cells.
    """
    height, width = grid.shape
    owner = np.full((height, width), -1)
    peaks: list[float] = []
    part_of: list[int] = []

    def root(peak: int) -> int:
        while part_of[peak] != peak:
            peak = part_of[peak]
        return peak

    for cell in np.argsort(-grid, axis=None, kind="stable"):
        y, x = divmod(int(cell), width)
        around = owner[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        near = sorted({root(peak) for peak in around[around >= 0].tolist()})  # A peak's number grows as heights fall.
        if not near:
            near = [len(peaks)]
            peaks.append(float(grid[y, x]))
            part_of.append(near[0])
        for lower in near[1:]:
            if peaks[lower] - grid[y, x] < prominence:
                part_of[lower] = near[0]
        owner[y, x] = near[0]
    roots = np.array([root(peak) for peak in range(len(peaks))])[owner]
    return [(peaks[peak], roots == peak) for peak in np.unique(roots).tolist()]


def _in_pixels(maps: Maps, cells_xyxy: NDArray[np.float32], pair: Ints) -> Floats:
    return map_to_image_xyxy(cells_xyxy, maps.fused.shape[1:], maps.pairs.sizes_wh[pair][:, ::-1])


def _count(cut: Cut, maps: Maps) -> Counts:
    """Return what the boxes find: in their order, each takes the free object of its pair that it fits best."""
    pairs = maps.pairs
    n_pairs = len(pairs.image)
    right = np.zeros(n_pairs)
    for pair in range(n_pairs):
        overlap = iou(cut.xyxy[cut.pair == pair], pairs.boxes[pairs.owner == pair])
        for row in overlap:  # A column is -1 once its object has a box.
            if row.max(initial=0.0) >= IOU_DELTA:
                right[pair] += 1
                overlap[:, row.argmax()] = -1.0
    boxes = np.bincount(cut.pair, minlength=n_pairs).astype(np.float64)
    return Counts(right, boxes, np.bincount(pairs.owner, minlength=n_pairs).astype(np.float64))


command = benchmark(
    "several_objects",
    "Score rules that cut several boxes from one map, by settings that the other half of the photographs chose.",
    TruthConfig,
    measure,
    "--model mobilenet_v2 --images PHOTOS --weights FILE --truth annotations.csv",
)

if __name__ == "__main__":
    main(command)
