"""Measure what figure and ground cost: images/s of the whole job with ``--foreground auto`` and with ``off``.

Both settings annotate the same photographs and write the default tables; with ``auto`` the table foreground too.

Batch by batch: one process has a worker of each setting, as the local engine's are, and gives them the same batches in
turns; every second batch begins with the other setting. It fetches, decodes, annotates and commits for each by itself,
so that a machine whose speed changes changes it for both. A ratio is that of the seconds for one commit's images.

Run by run: the settings take turns with whole commands of the local engine, and every second repetition begins with the
other one; the ratio of a repetition is that of its two rates at steady state. These figures also have the number of
cores that other programs kept busy during each run: where it is more than a few hundredths, they disturbed it.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import psutil
import pyarrow as pa
from torch import Tensor

from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs
from jobs.benchmark.steady_rate import SilentReporter, annotated_s, steady_per_s
from jobs.terminal.console import main
from pipeline.annotate.job import Job
from pipeline.annotate.reporter import Reporter, RunProgress
from pipeline.annotate.worker import Worker
from pipeline.graph.annotate import with_network
from pipeline.graph.annotate.driver import annotate
from pipeline.storage.lake.plan.planning import PlanSlice
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks.command import benchmark, in_new_process, resolved_precision
from tests.benchmarks.cpu_by_role import CpuByRole

SETTINGS = ("off", "auto")
GROUP = 8
"""Batches of a commit."""
LEAST_GROUPS = 4


class Run(NamedTuple):
    """The figures of one run."""

    images_per_s: float
    """Images/s at steady state."""
    cpu_ms: float
    """CPU milliseconds of all processes for an image at steady state."""
    others: float
    """Cores that other programs kept busy during the run."""


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return images/s of both settings and their ratio; raises UsageError where no direction belongs to the weights."""
    if not config.weights:
        raise UsageError("foreground_speed needs --weights that a figure/ground direction is installed for")
    runs: dict[str, list[Run]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as temporary:
        photographs = Path(temporary) / "photographs"
        make_photographs(config, photographs, config.count)
        job = {"input": str(photographs), "model": config.model, "weights": config.weights}
        job |= {"precision": resolved_precision(config), "device": "cpu", "engine": "local"}
        for repeat in range(config.repeats):
            for setting in SETTINGS[:: -1 if repeat % 2 else 1]:
                out = str(Path(temporary) / f"{setting}-{repeat}")
                runs[setting].append(_run(job | {"foreground": setting, "out": out}))
                reporter.say(f"run {repeat + 1}, --foreground {setting}: {runs[setting][-1]}")
        jobs = [job | {"foreground": name, "out": f"{temporary}/turns-{name}", "actors": "2"} for name in SETTINGS]
        batches = in_new_process(_by_batches, jobs)
        reporter.say(f"batch by batch: {batches}")
    ratios = [fused.images_per_s / plain.images_per_s for plain, fused in zip(runs["off"], runs["auto"], strict=True)]
    costs = [fused.cpu_ms / plain.cpu_ms for plain, fused in zip(runs["off"], runs["auto"], strict=True)]
    found: Figures = {"images": config.count, "precision": resolved_precision(config)}
    for setting, own in runs.items():
        found |= {
            f"--foreground {setting}: images/s": spread([run.images_per_s for run in own]),
            f"--foreground {setting}: CPU ms an image": spread([run.cpu_ms for run in own]),
            f"--foreground {setting}: cores busy with other programs": spread([run.others for run in own]),
        }
    found |= {"ratio of images/s, run by run": spread(ratios), "ratio of the CPU ms, run by run": spread(costs)}
    return found | {"ratio of images/s, batch by batch": spread(batches)}


def _run(job: dict[str, str]) -> Run:
    is_fused, cpu_s, others = in_new_process(_annotate, job)
    if is_fused != (job["foreground"] == "auto"):
        raise UsageError(f"--weights {job['weights']}: no figure/ground direction is installed for them")
    per_s = steady_per_s(annotated_s(Path(job["out"])))
    return Run(per_s, cpu_s * 1e3 / per_s, others)


class _InTurns:
    """Opens the runs of several jobs one in another, and then works on all of them batch by batch.

    An instance takes the place of the local engine while the runs are opened.
    """

    def __init__(self, jobs: Sequence[dict[str, str]]) -> None:
        self._jobs, self._sides = jobs, list[_Side]()
        self.seconds: list[list[float]] = []
        """Of each group of batches, which are one commit, the seconds of each job."""

    def annotate(self) -> None:
        """Annotate with all jobs."""
        annotate(AnnotateConfig.model_validate(self._jobs[len(self._sides)]), SilentReporter())

    def __call__(
        self, slices: Sequence[PlanSlice], job: Job, state: dict[str, Tensor], follow: Callable[[RunProgress], None]
    ) -> RunProgress:
        """Do what the local engine does, for all jobs when the last run is open."""
        self._sides.append(_Side(slices, job, state))
        if len(self._sides) < len(self._jobs):
            self.annotate()
        else:
            while group := self._group():
                self.seconds.append(group)
            for side in self._sides:
                side.commit()  # the batches of the last group, which is no whole one
        return RunProgress()

    def _group(self) -> list[float]:
        """Work on the next GROUP batches of each job and commit them; return the seconds, none at the end."""
        seconds = [0.0] * len(self._sides)
        for batch in range(GROUP):
            for place in range(len(self._sides))[:: -1 if batch % 2 else 1]:
                began_s = time.perf_counter()
                if not self._sides[place].work():
                    return []
                seconds[place] += time.perf_counter() - began_s
        for place, side in enumerate(self._sides):
            began_s = time.perf_counter()
            side.commit()
            seconds[place] += time.perf_counter() - began_s
        return seconds


class _Side:
    """One worker, its batches and its run."""

    def __init__(self, slices: Sequence[PlanSlice], job: Job, state: dict[str, Tensor]) -> None:
        self._job, self._worker = job, Worker(job, state, _OneAttempt())
        self._batches, self._rows, self._commits = self._read(slices), list[pa.Table](), 0

    def _read(self, slices: Sequence[PlanSlice]) -> Iterator[pa.Table]:
        size = self._job.compute.runtime.batch_size
        for table in self._job.reader.read_slices(*slices):
            yield from (table.slice(start, size) for start in range(0, len(table), size))

    def work(self) -> bool:
        """Fetch, decode and annotate the next batch; return whether there was one."""
        batch = next(self._batches, None)
        if batch is not None:
            self._rows.append(self._worker(batch).rows)
        return batch is not None

    def commit(self) -> None:
        """Commit the rows since the last commit."""
        self._job.commit(self._commits, self._rows)
        self._commits, self._rows = self._commits + 1, []


class _OneAttempt:
    """Counts no attempts: nothing dies here."""

    def begin(self, key: str) -> int:
        """Return 1."""
        return 1

    def finish(self, key: str, *, wait: bool = False) -> None:
        """Do nothing."""


def _by_batches(jobs: list[dict[str, str]]) -> list[float]:
    """Return the ratios of the second job's images/s to the first one's, without the first group of batches."""
    engine = _InTurns(jobs)
    with mock.patch.object(with_network, "run_local", engine):
        engine.annotate()
    if len(engine.seconds) < LEAST_GROUPS:
        raise UsageError(f"--count: gives {len(engine.seconds)} commits; at least {LEAST_GROUPS} are needed")
    return [first / second for first, second in engine.seconds[1:]]


def _annotate(job: dict[str, str]) -> tuple[bool, float, float]:
    """Annotate; return whether the maps were fused, and the busy cores of the job (steady state) and of others."""
    with CpuByRole() as used:
        began, busy_before_s = time.perf_counter(), _busy_s()
        manifest = annotate(AnnotateConfig.model_validate(job), SilentReporter())
        ended, busy_s = time.perf_counter(), _busy_s() - busy_before_s
    others = (busy_s - sum(used.between(began, ended).values())) / (ended - began)
    times_s = annotated_s(Path(job["out"]))
    to_counter = time.perf_counter() - time.time()
    start_s, end_s = (times_s[len(times_s) * tenths // 10] + to_counter for tenths in (2, 9))
    cpu_s = sum(used.between(start_s, end_s).values())
    return bool(manifest.settings["foreground"] != "off"), cpu_s / (end_s - start_s), others


def _busy_s() -> float:
    """Return the seconds that all cores together have been busy since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


command = benchmark(
    "foreground_speed",
    "Compare the whole job's images/s with and without figure/ground maps.",
    MeasureConfig,
    measure,
    "--model mobilenet_v2 --weights FILE --images PHOTOS --count 4800",
)

if __name__ == "__main__":
    main(command)
