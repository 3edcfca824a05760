"""A small job that is stopped at its first commit, for the test and for the benchmark of stops."""

import signal
from pathlib import Path
from typing import NamedTuple

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.records import load_runs
from schemas.options.config import StorageConfig
from schemas.runs import RunManifest
from tests.jobs_on import command
from tests.killing import Ending, stop_at_first_commit

N_IMAGES = 160
_OPTIONS = ["--model", "camlake_demo", "--precision", "fp32", "--topk", "2", "--box-rule", "paper"]
_OPTIONS += ["--actors", "1", "--batch-size", "2", "--images-per-commit", "8"]


class StoppedJob(NamedTuple):
    """A job whose command got a signal."""

    ending: Ending
    run: RunManifest
    decided: float
    """How many images the workers had annotated, from the file of ``--metrics``."""


def stopped_job(folder: Path, engine: str, number: signal.Signals) -> StoppedJob:
    """Annotate N_IMAGES pictures in ``folder/images`` into ``folder/out`` and send the signal at the first commit."""
    write_corpus(folder, N_IMAGES, seed=5, size_hw=(48, 64), broken=0)
    out, metrics = folder / "out", folder / "run.prom"
    words = command("annotate", folder / "images", "--out", out, *_OPTIONS, "--engine", engine, "--metrics", metrics)
    ending = stop_at_first_commit(words, out, number)
    (run,) = load_runs(*connect(str(out), StorageConfig()))
    (line,) = [line for line in metrics.read_text().splitlines() if line.startswith("camlake_images_total{")]
    return StoppedJob(ending, run, float(line.split()[-1]))
