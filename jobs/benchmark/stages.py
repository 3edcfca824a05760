"""Time each stage of the job alone: milliseconds an image on one worker, and the stage that limits this machine.

The stages run in turn, repeatedly, on the same photographs, with the functions that the job uses.
"""

import dataclasses
import itertools
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs, photographs_job
from jobs.benchmark.stage_parts import Timed, by_batch, network_parts
from pipeline.annotate.annotate_stage import AnnotateStage
from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.image_reader import count_tables
from pipeline.annotate.input_plan import images_per_slice, plan_inputs
from pipeline.annotate.job import make_job
from pipeline.annotate.model import Model, load_model
from pipeline.annotate.reporter import Reporter
from pipeline.annotate.resources import Machine, plan_compute
from pipeline.annotate.spec import run_request
from pipeline.images.decode import decode
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.plan.planning import Plan
from pipeline.storage.lake.rows import split_rows
from pipeline.storage.lake.run import OpenRun, open_run
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import BenchmarkConfig

SAMPLE = 256
"""Number of photographs for every stage after planning; listing and planning process all ``count`` photographs."""
LARGE_HW = (3000, 4000)
"""(height, width) in pixels of a telephone's photograph."""
IN_STREAM = ("fetch", "decode", "network", "maps and boxes", "answers to Arrow", "encoding and commit")
STAGES = ("list", "list and plan", *IN_STREAM[:-1], "Parquet encoding", IN_STREAM[-1])
SCALED, WHOLE = "decode 4000×3000 scaled", "decode 4000×3000 whole"


def measure(config: BenchmarkConfig, reporter: Reporter) -> Figures:
    """Return for each stage ms an image, images/s of one worker and of this machine, and share of the slowest stage."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photographs(config, folder / "sample", min(SAMPLE, config.count))
        copies = config.model_copy(update={"images": str(folder / "sample")})
        make_photographs(copies, folder / "photographs", config.count)
        job_config = photographs_job(config, folder, precision=config.precision)
        model = load_model(job_config)
        with open_run(run_request(job_config, model)) as run:
            timed, workers = _to_time(job_config, model, run)
            runs_ms = _time(timed, config.repeats, reporter)
    return _figures(runs_ms, workers)


def _to_time(config: AnnotateConfig, model: Model, run: OpenRun) -> tuple[dict[str, Timed], dict[str, int]]:
    """Return the timings by name, and the workers of the stages that do not have one worker for each core."""

    def listed() -> int:
        return sum(
            len(batch) for batch in list_inputs(config.input, config, out=config.out, how=config.input_options).batches
        )

    def planned() -> Plan:
        plan_dir = LakePaths(run.root).plan_dir(run.manifest.run_id)
        return plan_inputs(config, run.manifest.model, (), [], run.fs, run.root, plan_dir, images_per_slice(config))

    plan, cores, gpus = planned(), os.cpu_count() or 1, torch.cuda.device_count()
    compute = plan_compute(config, Machine(cores, gpus, cores), count_tables(plan.slices))
    job = make_job(config, model, run.begin(plan.counts, asdict(compute)), compute, plan.counts.planned)
    ends = list(itertools.accumulate(one.rows for one in plan.slices))
    slices = [one for one, end in zip(plan.slices, ends, strict=True) if end - one.rows < SAMPLE]

    def fetched() -> pa.Table:
        return pa.concat_tables(table for one in slices for table in job.reader.read_slices(one))

    sample = fetched()
    decoding, size = DecodeStage(job.decode), compute.runtime.batch_size
    timed = {"list": Timed(listed, ends[-1]), "list and plan": Timed(planned, ends[-1])}
    timed |= {"fetch": Timed(fetched, len(sample)), "decode": by_batch(decoding, sample, size)}
    decoded = decoding(sample)
    timed |= network_parts(job.annotate, model.weights.state, decoded)
    rows = AnnotateStage(job.annotate, model.weights.state)(decoded)
    tables = split_rows(rows, run.manifest.run_id, config.outputs)
    numbers = itertools.count()
    timed["Parquet encoding"] = Timed(lambda: [to_parquet(one) for one in tables.values() if len(one)], len(rows))
    timed["encoding and commit"] = Timed(lambda: job.commit.committer.commit(f"{next(numbers):06d}", tables), len(rows))
    on_device = gpus if compute.runtime.device == "cuda" else cores
    workers = {"list": 1, "list and plan": 1, "network": on_device, "maps and boxes": on_device}
    return timed | _of_large_photographs(job.decode, sample), dict.fromkeys(STAGES, cores) | workers


def _of_large_photographs(spec: DecodeSpec, sample: pa.Table) -> dict[str, Timed]:
    """Return timings of decoding two enlarged photographs of the sample: at a reduced scale, and at full size."""
    blobs = []
    for data in sample["data"].slice(0, 2).to_pylist():
        large = cv2.resize(decode(data, spec.limits).pixels, LARGE_HW[::-1], interpolation=cv2.INTER_CUBIC)
        blobs.append(cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    column = sample.schema.get_field_index("data")
    table = sample.slice(0, 2).set_column(column, sample.schema.field("data"), pa.array(blobs, pa.large_binary()))
    scaled, whole = (DecodeStage(dataclasses.replace(spec, jpeg_scaling=scaling)) for scaling in ("auto", "off"))
    return {SCALED: by_batch(scaled, table, 2), WHOLE: by_batch(whole, table, 2)}


def _time(timed: dict[str, Timed], repeats: int, reporter: Reporter) -> dict[str, NDArray[np.float64]]:
    """Run all timings in turn; return ms an image of each repetition. A first repetition does not count."""
    runs_ms = {name: np.zeros(repeats + 1) for name in timed}
    for repeat in range(repeats + 1):
        for name, one in timed.items():
            started = time.perf_counter()
            one.run()
            runs_ms[name][repeat] = (time.perf_counter() - started) / one.images * 1e3
        reporter.say(f"run {repeat} of {repeats}: decode {runs_ms['decode'][repeat]:.2f} ms an image")
    return {name: values[1:] for name, values in runs_ms.items()}


def _figures(runs_ms: dict[str, NDArray[np.float64]], workers: dict[str, int]) -> Figures:
    """Return the figures; a stage's share is its time on all workers divided by the slowest stage's, per repetition."""
    nothing, maps, answers = (values for name, values in runs_ms.items() if name.startswith("no network"))
    runs_ms = runs_ms | {"maps and boxes": maps - nothing, "answers to Arrow": answers - maps}
    here_ms = {name: runs_ms[name] / workers[name] for name in STAGES}
    slowest = max(STAGES, key=lambda name: float(np.median(here_ms[name])))
    figures: Figures = {}
    for name in STAGES:
        figures |= {
            f"{name}: ms an image": spread(runs_ms[name].tolist()),
            f"{name}: images/s of a worker": float(1e3 / np.median(runs_ms[name])),
            f"{name}: images/s of {workers[name]} workers": float(1e3 / np.median(here_ms[name])),
            f"{name}: share of the slowest": spread((here_ms[name] / here_ms[slowest]).tolist()),
        }
    figures |= {f"{name}: ms an image": spread(runs_ms[name].tolist()) for name in (SCALED, WHOLE)}
    figures["whole / scaled"] = spread((runs_ms[WHOLE] / runs_ms[SCALED]).tolist())
    figures["in the stream, all on these cores: images/s"] = float(
        1e3 / np.median(sum(here_ms[one] for one in IN_STREAM))
    )
    return figures | {"slowest": slowest}
