"""Each stage of the job alone: milliseconds an image takes one worker, and which stage limits this machine.

The stages run in turn, again and again, over the same photographs, by the very functions that the job runs.
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

from jobs.suites.machine import Figures, spread
from jobs.suites.photographs import make_photographs, photographs_job
from jobs.suites.stage_parts import Timed, by_batch, network_parts
from pipeline.annotate.annotate_stage import AnnotateStage
from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.image_reader import count_tables
from pipeline.annotate.model import Model, load_model
from pipeline.annotate.reporter import Reporter
from pipeline.annotate.spec import plan_inputs, run_request
from pipeline.graph.annotate.job import make_job
from pipeline.graph.resources import Machine, images_per_slice, plan_compute
from pipeline.images.decode import decode
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.planning import Plan
from pipeline.storage.lake.rows import split_rows
from pipeline.storage.lake.run import OpenRun, open_run
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import BenchmarkConfig

SAMPLE = 256
"""Photographs of every stage behind the plan; listing and planning see all of ``count``."""
LARGE_HW = (3000, 4000)
"""A photograph of a telephone."""
IN_STREAM = ("fetch", "decode", "network", "maps and boxes", "answers to Arrow", "encoding and commit")
STAGES = ("list", "list and plan", *IN_STREAM[:-1], "Parquet encoding", IN_STREAM[-1])
SCALED, WHOLE = "decode 4000×3000 scaled", "decode 4000×3000 whole"


def measure(config: BenchmarkConfig, reporter: Reporter) -> Figures:
    """Return for each stage ms an image, images/s of one worker and of this machine, and its share of the slowest."""
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
    """Return what is timed, by name, and how many workers this machine has for a stage, where not one a core."""

    def listed() -> int:
        return sum(
            len(batch) for batch in list_inputs(config.input, config, out=config.out, how=config.input_options).batches
        )

    def planned() -> Plan:
        plan_dir = LakePaths(run.root).plan_dir(run.manifest.run_id)
        return plan_inputs(config, model, [], run.fs, run.root, plan_dir, images_per_slice(config))

    plan, cores, gpus = planned(), os.cpu_count() or 1, torch.cuda.device_count()
    compute = plan_compute(config, Machine(cores, gpus, cores), count_tables(plan.slices))
    job = make_job(config, model, run.begin(plan.counts, asdict(compute)), compute, plan.counts.planned)
    ends = list(itertools.accumulate(one.rows for one in plan.slices))
    slices = [one for one, end in zip(plan.slices, ends, strict=True) if end - one.rows < SAMPLE]

    def fetched() -> pa.Table:
        return pa.concat_tables(table for one in slices for table in job.reader.read_slice(one))

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
    timed["encoding and commit"] = Timed(lambda: job.committer.commit(f"{next(numbers):06d}", tables), len(rows))
    on_device = gpus if compute.runtime.device == "cuda" else cores
    workers = {"list": 1, "list and plan": 1, "network": on_device, "maps and boxes": on_device}
    return timed | _of_large_photographs(job.decode, sample), dict.fromkeys(STAGES, cores) | workers


def _of_large_photographs(spec: DecodeSpec, sample: pa.Table) -> dict[str, Timed]:
    """Return the decoding of two photographs of the sample, enlarged, at a smaller scale and whole."""
    blobs = []
    for data in sample["data"].slice(0, 2).to_pylist():
        large = cv2.resize(decode(data, spec.limits).pixels, LARGE_HW[::-1], interpolation=cv2.INTER_CUBIC)
        blobs.append(cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    column = sample.schema.get_field_index("data")
    table = sample.slice(0, 2).set_column(column, sample.schema.field("data"), pa.array(blobs, pa.large_binary()))
    scaled, whole = (DecodeStage(dataclasses.replace(spec, jpeg_scaling=scaling)) for scaling in ("auto", "off"))
    return {SCALED: by_batch(scaled, table, 2), WHOLE: by_batch(whole, table, 2)}


def _time(timed: dict[str, Timed], repeats: int, reporter: Reporter) -> dict[str, NDArray[np.float64]]:
    """Return ms an image of each run, all of them in turn; a first run does not count."""
    runs_ms = {name: np.zeros(repeats + 1) for name in timed}
    for repeat in range(repeats + 1):
        for name, one in timed.items():
            started = time.perf_counter()
            one.run()
            runs_ms[name][repeat] = (time.perf_counter() - started) / one.images * 1e3
        reporter.say(f"run {repeat} of {repeats}: decode {runs_ms['decode'][repeat]:.2f} ms an image")
    return {name: values[1:] for name, values in runs_ms.items()}


def _figures(runs_ms: dict[str, NDArray[np.float64]], workers: dict[str, int]) -> Figures:
    """Return the figures; a stage's share of the slowest is that of their times on all workers, run by run."""
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
