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
show what additional boxes cost: at the precision of the largest component no rule finds one object more. Of ilsvrc300's
300 photographs 51 have several objects, 198 together. On all photographs the best setting of the other half gains 0 or
0.4 points of recall, with intervals that begin at 0. On the 51 photographs alone, for a user who knows that there are
several objects, the gains are 0 to 3.8 points, and precision changes by -4.8 to +2.1 points; no setting that one half
chooses is the choice of the other half too, and no gain is clear in both directions. The largest component finds 11 to
12 % of these objects, and the best of the other rules 15 %. The direction and its rule were learned on ilsvrc300, which
is the same for all rules here.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from jobs.benchmark.machine import Figures
from jobs.benchmark.steady_rate import SilentReporter
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.arrays.figures import Pairs
from pipeline.arrays.maps import dequantize
from pipeline.arrays.metrics import Bools, Floats, Ints, bootstrap_interval
from pipeline.graph.annotate.driver import annotate
from pipeline.models.localize.foreground import foreground_of
from pipeline.outputs import reader as camlake
from pipeline.outputs.truth_join import TRUE_ROWS, matched
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.truth.truth import Truth, read_truth
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from tests.benchmarks.command import TruthConfig, benchmark
from tests.benchmarks.several_rules import Counts, Maps, settings_of


def measure(config: TruthConfig, reporter: Reporter) -> Figures:
    """Return recall and precision of each rule on the half that did not choose its setting, and the gains."""
    if not (config.images and config.truth and config.weights):
        raise UsageError("several_objects needs --images, --truth and --weights")
    maps = stored_maps(config, read_truth(config.truth, StorageConfig()))
    rules = {rule: dict(settings_of(rule, maps)) for rule in ("largest", "components", "peaks")}
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


command = benchmark(
    "several_objects",
    "Score rules that cut several boxes from one map, by settings that the other half of the photographs chose.",
    TruthConfig,
    measure,
    "--model mobilenet_v2 --images PHOTOS --weights FILE --truth annotations.csv",
)

if __name__ == "__main__":
    main(command)
