"""Chooses by trials the options that the user left open: batch size, actors, threads, compilation, place of decoding.

The result of the trials is a configuration that the user could have written, and ``plan_compute`` makes every plan.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from pipeline.annotate.image_reader import count_tables
from pipeline.annotate.input_plan import TUNE_FROM, images_per_slice
from pipeline.annotate.model import Model
from pipeline.annotate.resources import Compute, Machine, images_per_commit, plan_compute, worth_tuning
from pipeline.annotate.spec import row_bytes
from pipeline.graph.tuning.bench import Bench, cannot_run, open_bench
from pipeline.graph.tuning.bench_actor import RunTiming, Speed
from pipeline.graph.tuning.prediction import Prediction, predict, predict_images_per_s
from pipeline.storage.lake.plan.planning import PlanSlice
from schemas.options.annotate import AnnotateConfig

BUDGET_S = 5.0
"""Seconds of trials after which no other trial begins, except the trial of compilation."""
TRIAL_S = 0.4
"""Seconds that a trial takes, unless its first batch takes longer."""
STAGES_S = 2.0
"""Seconds that the network runs for a prediction."""
CPU_BATCHES = (16, 32, 64, 128)
GPU_BATCHES = (16, 32, 64, 128, 256, 512, 1024)
MIN_GAIN = 1.03
"""Least speed, relative to the speed before, of a choice that takes more memory or moves more bytes."""
COMPILE_FROM_S = 120.0
"""Least seconds of work for a trial of compilation: it takes 5 to 20 s, and makes SqueezeNet on CPU twice as fast."""
COMPILE_REPAYS = 3.0
"""Least ratio of the time that compilation saves to the time that it takes."""


class Choice(NamedTuple):
    """A configuration, and the speed that its actors reached."""

    config: AnnotateConfig
    speed: Speed


def tune(
    config: AnnotateConfig,
    machine: Machine,
    n_tables: int,
    planned: int,
    bench: Bench,
    budget_s: float = BUDGET_S,
) -> Compute:
    """Return the fastest plan that ``config`` allows; its ``why`` lists the trials and their speeds.

    Options that the user chose stay as they are and cost no trial. Raises UsageError where not even the smallest batch
    fits into the GPU's memory.
    """
    tuner = _Tuner(machine, n_tables, bench, budget_s)
    best = tuner.batch_size(_uncompiled(config))
    best = tuner.threads(best)
    if config.compile == "auto":
        best = tuner.compilation(best, planned)
    chosen = tuner.decoding(best.config)
    if config.compile == "on":
        chosen = chosen.model_copy(update={"compile": "on"})
    return replace(tuner.plan(chosen), why=f"measured, images/s of the networks alone: {', '.join(tuner.tried)}")


def _uncompiled(config: AnnotateConfig) -> AnnotateConfig:
    """Return the configuration without compilation, which would take minutes for trials of all batch sizes."""
    return config.model_copy(update={"compile": "off"})


def resolve_compute(
    config: AnnotateConfig,
    model: Model,
    machine: Machine,
    slices: Sequence[PlanSlice],
    read_sample: Callable[[], pa.Table],
    tune_from: int = TUNE_FROM,
) -> Compute:
    """Return the plan for a run of these slices: by trials where the run is long enough, else by ``plan_compute``.

    ``read_sample`` returns planned inputs (PLAN) for the trials.
    """
    planned = sum(one.rows for one in slices)
    if not worth_tuning(config, planned, tune_from):
        return plan_compute(config, machine, count_tables(slices))
    with open_bench(
        config, model, plan_compute(_uncompiled(config), machine, count_tables(slices)), read_sample()
    ) as bench:
        return tune(config, machine, count_tables(slices), planned, bench)


class Measured(NamedTuple):
    """The plan of a run, the times of its stages on a sample, and the prediction for the whole run."""

    compute: Compute
    timed: RunTiming
    prediction: Prediction


def measure_run(
    config: AnnotateConfig,
    model: Model,
    machine: Machine,
    slices: Sequence[PlanSlice],
    sample: pa.Table,
    *,
    offered: Machine | None = None,
    tune_from: int = TUNE_FROM,
) -> Measured:
    """Choose a plan as ``resolve_compute`` does, time every stage on the connected Ray, and predict the run.

    ``machine`` is the connected Ray. ``offered`` is another cluster to predict for. ``plan_compute`` makes its plan
    without trials, because trials on this machine are not valid for other machines. Where this machine has no GPU, the
    speed of GPUs stays unknown.
    """
    planned, n_tables = sum(one.rows for one in slices), count_tables(slices)
    tuned = offered is None and worth_tuning(config, planned, tune_from)
    here = _uncompiled(config) if tuned else config
    if offered:
        wanted = plan_compute(config, offered, n_tables).runtime.device
        device = wanted if machine.gpus else "cpu"
        here = config.model_copy(update={"device": device, "actors": None})
        if device == "cpu" and config.decode == "gpu":
            here = here.model_copy(update={"decode": "auto"})
    compute = plan_compute(here, machine, n_tables)
    with open_bench(here, model, compute, sample) as bench:
        if tuned:
            compute = tune(config, machine, n_tables, planned, bench)
        timed = bench.stages(compute, machine, STAGES_S)
    if offered:
        compute = plan_compute(config, offered, n_tables)
    per_slice = images_per_slice(config)(planned)
    per_commit = images_per_commit(config, planned, compute.actors[1], row_bytes(config, model))
    return Measured(compute, timed, predict(compute, offered or machine, timed, planned, per_slice, per_commit))


class _Tuner:
    def __init__(self, machine: Machine, n_tables: int, bench: Bench, budget_s: float) -> None:
        self._machine, self._n_tables, self._bench = machine, n_tables, bench
        self._end_s = time.monotonic() + budget_s
        self.tried: list[str] = []

    def plan(self, config: AnnotateConfig) -> Compute:
        return plan_compute(config, self._machine, self._n_tables)

    def batch_size(self, config: AnnotateConfig) -> Choice:
        sizes = GPU_BATCHES if self.plan(config).runtime.device == "cuda" else CPU_BATCHES
        open_sizes = (config.batch_size,) if config.batch_size else sizes
        candidates = [config.model_copy(update={"batch_size": size}) for size in open_sizes]
        first = self._try(candidates[0])
        if isinstance(first, str):
            raise cannot_run(self.plan(candidates[0]), first)
        return self._climb(Choice(candidates[0], first), candidates[1:])

    def threads(self, best: Choice) -> Choice:
        """Try half as many actors with twice as many threads, on CPUs that only this run uses."""
        compute = self.plan(best.config)
        if best.config.actors or compute.runtime.device != "cpu" or not self._machine.cores:
            return best
        actors, fewer = compute.actors[1], []
        while actors := actors // 2:
            fewer.append(best.config.model_copy(update={"actors": (actors, actors)}))
        return self._climb(best, fewer)

    def compilation(self, best: Choice, planned: int) -> Choice:
        plain_s = planned / best.speed.images_per_s
        if not self._bench.compiles or plain_s < COMPILE_FROM_S:
            return best
        compiled = best.config.model_copy(update={"compile": "on"})
        speed = self._try(compiled)
        if isinstance(speed, str) or plain_s - planned / speed.images_per_s < COMPILE_REPAYS * speed.ready_s:
            return best
        return Choice(compiled, speed)

    def decoding(self, config: AnnotateConfig) -> AnnotateConfig:
        """Choose where to decode on a machine with GPUs: remote moves more bytes, so it must be faster by MIN_GAIN.

        On CPU both places use the same cores, so ``config`` comes back unchanged.
        """
        if config.decode != "auto" or self.plan(config).runtime.device != "cuda" or not self._machine.cores:
            return config
        rates = {}
        for place in ("local", "remote"):
            compute = self.plan(config.model_copy(update={"decode": place}))
            timed = self._bench.stages(compute, self._machine, TRIAL_S)
            rates[place] = predict_images_per_s(compute, self._machine, timed)
            self.tried.append(f"decoding {place} {rates[place]:.0f} with all stages")
        place = "remote" if rates["remote"] > MIN_GAIN * rates["local"] else "local"
        return config.model_copy(update={"decode": place})

    def _climb(self, best: Choice, candidates: Iterable[AnnotateConfig]) -> Choice:
        """Try the candidates in turn while each is faster than the best before by MIN_GAIN; return the best one."""
        for config in candidates:
            if time.monotonic() > self._end_s:
                break
            speed = self._try(config)
            if isinstance(speed, str) or speed.images_per_s < MIN_GAIN * best.speed.images_per_s:
                break
            best = Choice(config, speed)
        return best

    def _try(self, config: AnnotateConfig) -> Speed | str:
        compute = self.plan(config)
        runtime = compute.runtime
        speed = self._bench.network(compute, TRIAL_S)
        name = f"{compute.actors[1]} × {runtime.threads} threads, batch {runtime.batch_size}"
        result = speed if isinstance(speed, str) else f"{speed.images_per_s:.1f}"
        self.tried.append(f"{name}{' compiled' if runtime.compile else ''} {result}")
        return speed
