"""Compare camlake with other programs that a user could choose: same network, weights, photographs, machine; in turn.

Each side runs in a new process; of the pipelines camlake is the command that a user types, and no process imports
another one. Pipelines are compared at steady state, by the times in their rows, and as whole jobs with their start-up.
Libraries that only make maps are compared by the speed of the maps, in fp32.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import util
from pathlib import Path
from statistics import median

from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs, weights_file
from jobs.benchmark.steady_rate import annotated_s, steady_per_s
from pipeline.annotate.reporter import Reporter
from pipeline.storage.lake.lineage import installed_version
from schemas.errors import UsageError
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks.command import benchmark, in_new_process, resolved_precision
from tests.benchmarks.peers import own_job
from tests.benchmarks.peers.map_speed import images_per_s
from tests.benchmarks.peers.setup import Setup
from tests.benchmarks.peers.side import run_side

PACKAGES = {"daft": "daft", "grad-cam": "pytorch_grad_cam", "torchcam": "torchcam"}
"""The packages that the extra ``benchmark`` installs, and the module of each package."""
MAP_IMAGES = 64
"""Number of pictures whose maps are timed; it is small because pytorch-grad-cam takes seconds for a batch."""

PIPELINES = {
    "Ray Data": (
        "ray_pattern",
        "no resume, no quarantine: an image that can't be decoded ends the job; float32 maps; tables nested in one row",
    ),
    "Daft": (
        "daft_pattern",
        "no resume, no quarantine: an image that can't be decoded ends the job; float32 maps; tables nested in one row",
    ),
    "DataLoader": (
        "loops",
        "no resume, no quarantine, one machine: an image that can't be decoded ends the loop; the same tables",
    ),
}
"""Each peer's module, and the outputs and abilities that it lacks."""
MAPS = {
    "pytorch-grad-cam": ("grad_cam", "maps only, upsampled, in [0, 1]: no boxes, features, probabilities or tables"),
    "torch-cam": ("torch_cam", "maps only, in [0, 1]: no boxes, features, probabilities or tables"),
}


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return images/s of every side and camlake's ratio to each; raises UsageError where the extra is missing."""
    require_extra(PACKAGES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photographs(config, folder / "photographs", config.count)
        setup = setup_in(config, folder)
        few = make_photographs(config, folder / "few", MAP_IMAGES)
        figures = {"images": config.count, "precision of the pipelines": setup.precision}
        figures |= _pipelines(setup, config.repeats, reporter)
        return figures | _maps(dataclasses.replace(setup, photographs=str(few[0].parent)), config.repeats, reporter)


def setup_in(config: MeasureConfig, folder: Path) -> Setup:
    """Return the setup of all sides: the photographs in ``folder``, the network and the number type of ``config``."""
    return Setup(
        photographs=str(folder / "photographs"),
        out=str(folder / "out"),
        model=config.model,
        weights=weights_file(config, folder),
        precision=resolved_precision(config),
    )


def require_extra(packages: Mapping[str, str]) -> None:
    """Check that the peers' modules are installed; raises UsageError, with the command that installs them."""
    missing = [name for name, module in packages.items() if util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f"{missing[0]} is not installed; pip install 'camlake[benchmark]', in a checkout -e '.[benchmark]'"
        )


def versions() -> Figures:
    """Return the versions of the peers for the JSON file."""
    return {"peers": {name: installed_version(name) for name in PACKAGES}}


@dataclasses.dataclass(frozen=True)
class Run:
    """The figures of one run of one pipeline."""

    steady_per_s: float
    whole_s: float
    """Seconds from the start to the end of the pipeline's process."""
    bytes_an_image: float


def _pipelines(setup: Setup, repeats: int, reporter: Reporter) -> Figures:
    sides = {"camlake": own_job.run, **{name: partial(run_side, module) for name, (module, _) in PIPELINES.items()}}
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, side in sides.items():
            runs[name].append(_run(side, dataclasses.replace(setup, out=f"{setup.out}/{name} {repeat}")))
            reporter.say(f"run {repeat + 1}, {name}: {runs[name][-1].steady_per_s:.1f} images/s")
    figures: Figures = {}
    for name, own in runs.items():
        figures |= {
            f"{name} images/s": spread([run.steady_per_s for run in own]),
            f"{name} whole job s": spread([run.whole_s for run in own]),
            f"{name} bytes an image": median(run.bytes_an_image for run in own),
        }
    for name, (_, lacks) in PIPELINES.items():
        pairs = list(zip(runs["camlake"], runs[name], strict=True))
        figures |= {
            f"camlake / {name}": spread([ours.steady_per_s / theirs.steady_per_s for ours, theirs in pairs]),
            f"camlake / {name}, whole job": spread([theirs.whole_s / ours.whole_s for ours, theirs in pairs]),
            f"{name} lacks": lacks,
        }
    return figures


def _run(side: Callable[[Setup], None], setup: Setup) -> Run:
    started = time.perf_counter()
    side(setup)
    whole_s = time.perf_counter() - started
    size_bytes = sum(path.stat().st_size for path in Path(setup.out).rglob("*.parquet") if "_runs" not in path.parts)
    times = annotated_s(Path(setup.out))
    return Run(steady_per_s(times), whole_s, size_bytes / len(times))


def _maps(setup: Setup, repeats: int, reporter: Reporter) -> Figures:
    libraries = {"camlake": "camlake", **{name: module for name, (module, _) in MAPS.items()}}
    rates: dict[str, list[float]] = {name: [] for name in libraries}
    for repeat in range(repeats):
        for name, library in libraries.items():
            rates[name].append(in_new_process(images_per_s, library, setup))
            reporter.say(f"run {repeat + 1}, {name}: top-5 maps of {rates[name][-1]:.1f} images/s")
    figures: Figures = {"camlake top-5 maps and boxes, fp32, images/s": spread(rates["camlake"])}
    for name, (_, lacks) in MAPS.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["camlake"], rates[name], strict=True)]
        figures |= {
            f"{name} top-5 maps, fp32, images/s": spread(rates[name]),
            f"camlake / {name}": spread(ratios),
            f"{name} lacks": lacks,
        }
    return figures


command = benchmark(
    "peers",
    "Compare camlake with Ray Data's own pattern, Daft, a DataLoader, pytorch-grad-cam and torch-cam.",
    MeasureConfig,
    measure,
    "--images PHOTOS --weights FILE",
    facts=versions,
)
