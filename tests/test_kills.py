"""A run killed with SIGKILL at work, and the next one: what was done stays, the rest follows, nothing twice."""

import os
import signal
import threading
import time

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import CamlakeError
from schemas.options.config import StorageConfig
from tests.jobs_on import command, run_annotate
from tests.killing import LOOKS_EVERY_S, kill_when
from tests.references.equal_rows import same_rows

N_IMAGES = 160


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_killed_runs_cost_nothing_but_their_last_commit(ray_session, tmp_path, engine):
    write_corpus(tmp_path, N_IMAGES, seed=5, size_hw=(48, 64), broken=1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"batch_size": 4, "images_per_commit": 8}
    run_annotate(tmp_path / "images", whole, **options)
    words = command(
        "annotate",
        *(tmp_path / "images", "--out", killed, "--model", "camlake_demo", "--topk", "2", "--actors", "1"),
        *("--batch-size", "4", "--images-per-commit", "8", "--max-rejected", "1", "--precision", "fp32"),
        *("--box-rule", "paper", "--engine", engine),
    )
    # The first run on Ray has a Ray of its own, which ends with it; the second's cluster lives on.
    second = ("--address", ray.get_runtime_context().gcs_address) if engine == "ray" else ()
    for address in ((), second):
        done = len(commits(killed))
        kill_when([*words, *address], lambda done=done: len(commits(killed)) > done)
    counts = run_annotate(tmp_path / "images", killed, **options).counts
    assert counts.already_done > 0
    assert counts.already_done + counts.planned == N_IMAGES + 1
    for table in ("images", "boxes", "heatmaps", "features", "quarantine"):
        assert same_rows(whole, killed, table) > 0, table
    assert verify(*connect(str(killed), StorageConfig())).problems == ()
    named = {file.path for run in camlake.open(str(killed)).runs for file in run.files}
    assert {str(path.relative_to(killed)) for path in killed.glob("*/model=*/**/part-*.parquet")} == named
    shift_edges(next(killed.glob("boxes/**/*.parquet")))
    with pytest.raises(CamlakeError, match="boxes: xmin is not the same"):
        same_rows(whole, killed, "boxes")


def shift_edges(path):
    rows = pq.read_table(path)
    column = rows.column_names.index("xmin")
    pq.write_table(rows.set_column(column, "xmin", pc.add(rows["xmin"], pa.scalar(0.1, pa.float32()))), path)


def commits(out):
    return list(out.glob("_runs/*/commits/*.json"))


NAME = {"local": "local_server", "ray": "MapWorker"}
"""What the command line of an engine's workers has."""


def annotators(engine):
    """Return the processes that annotate for this process: their parent, a raylet or server, is a child of ours."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            parent = process.parent()
            if parent and parent.ppid() == os.getpid() and NAME[engine] in " ".join(process.cmdline()):
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_worker_killed_at_work_is_replaced(ray_session, tmp_path, engine):
    """SIGKILL to a worker's process: the engine replaces it, and every image has one ending."""
    write_corpus(tmp_path, 960, seed=6, size_hw=(48, 64), broken=0)
    out, killed = tmp_path / "out", []
    while annotators(engine):  # Ray still ends those of a command that another test killed.
        time.sleep(LOOKS_EVERY_S)

    def kill_one():
        while not commits(out):
            time.sleep(LOOKS_EVERY_S)
        (pid,) = annotators(engine)  # 960 images last longer than this look, on workers that are warm too.
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    counts = run_annotate(tmp_path / "images", out, batch_size=4, images_per_commit=8, engine=engine).counts
    killer.join()
    assert (len(killed), counts.annotated) == (1, 960)
    assert verify(*connect(str(out), StorageConfig())).problems == ()
