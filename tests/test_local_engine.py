"""The local engine: real processes, really killed; a network that can't load; no Ray and no second main program."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from jobs.terminal.console import Screen
from pipeline.annotate import job as job_module
from pipeline.annotate import stopping
from pipeline.annotate.local.local_server import worker_server
from pipeline.annotate.spec import annotate_spec, decode_spec
from pipeline.graph.annotate import engine_choice
from pipeline.graph.annotate.driver import annotate
from pipeline.graph.annotate.engine_choice import choose_engine, import_ahead
from pipeline.images.resize import ResizePlan
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import CamlakeError, ModelError, Stopped, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from tests.jobs_on import ROOT, run_annotate
from tests.killing import LOOKS_EVERY_S

DEADLY_HW = (13, 17)
"""The size of a picture that kills the process which resizes it."""
ENGINES = pytest.mark.parametrize("engine", ["local", "ray"])


@dataclass(frozen=True)
class DeadlyPlan(ResizePlan):
    """A resize that dies of one picture, as a faulty decoder in C would."""

    def apply(self, pixels, size_hw, into):
        if size_hw == DEADLY_HW:
            os.kill(os.getpid(), signal.SIGKILL)
        super().apply(pixels, size_hw, into)


def deadly_decode_spec(config, model):
    spec = decode_spec(config, model)
    return replace(spec, resize=DeadlyPlan(spec.resize.resize, spec.resize.image_size, spec.resize.map_hw))


@dataclass(frozen=True)
class StuckPlan(ResizePlan):
    """A resize that does not end for one picture, and says so in a file."""

    says: str = ""

    def apply(self, pixels, size_hw, into):
        if size_hw == DEADLY_HW:
            Path(self.says).touch()
            time.sleep(60)
        super().apply(pixels, size_hw, into)


def refuse(state):
    raise ModelError("the network does not fit")


def sleep(state):
    time.sleep(60)


def die(state):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(state):
    raise ZeroDivisionError("a fault of the program")


def loading(load):
    """Return an ``annotate_spec`` whose workers load their network with ``load``."""
    return lambda *arguments: replace(annotate_spec(*arguments), load=load)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 10, seed=4, size_hw=(48, 64), broken=1)
    Image.fromarray(np.zeros((*DEADLY_HW, 3), np.uint8)).save(folder / "images" / "poison.png")
    return folder / "images"


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_an_image_that_kills_every_process_is_rejected_alone(ray_session, images, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(job_module, "decode_spec", deadly_decode_spec)
    counts = run_annotate(images, tmp_path, engine=engine, batch_size=4).counts
    assert (counts.annotated, counts.rejected_by_reason) == (10, {"crashed": 1, counts_of_broken(images): 1})
    with camlake.open(str(tmp_path)) as lake:
        rejected = {row["uri"].rpartition("/")[2]: row for row in lake.arrow("quarantine").to_pylist()}
    assert rejected["poison.png"]["reason_code"] == "crashed"
    assert rejected["poison.png"]["detail"] == "3 processes died while they worked on it alone"
    assert verify(*connect(str(tmp_path), StorageConfig())).problems == ()


def counts_of_broken(images):
    (broken,) = [path for path in images.iterdir() if "broken" in path.name]
    return "truncated" if broken.read_bytes()[:2] == b"\xff\xd8" else "not_an_image"


@ENGINES
def test_a_network_that_does_not_load_ends_the_run_in_one_line(ray_session, images, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(job_module, "annotate_spec", loading(refuse))
    with pytest.raises(ModelError, match=r"^the network does not fit$"):
        run_annotate(images, tmp_path, engine=engine)


def test_a_fault_of_the_program_is_one_line_with_its_traceback_behind_it(images, tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "annotate_spec", loading(fail))
    with pytest.raises(
        CamlakeError, match=r"^ZeroDivisionError: a fault of the program \(--debug shows where\)$"
    ) as hit:
        run_annotate(images, tmp_path)
    assert "in fail" in str(hit.value.__cause__)


def test_processes_that_die_at_their_start_end_the_run(images, tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "annotate_spec", loading(die))
    with pytest.raises(CamlakeError, match=r"^3 processes died while they loaded the network; is there memory"):
        run_annotate(images, tmp_path, batch_size=2)  # The other tables wait for a process meanwhile.
    monkeypatch.undo()
    assert run_annotate(images, tmp_path).counts.annotated == 11


def test_after_a_signal_what_came_back_in_time_is_committed(images, tmp_path, monkeypatch):
    stuck, out = tmp_path / "stuck", tmp_path / "out"

    def stuck_decode_spec(config, model):
        spec = decode_spec(config, model)
        plan = StuckPlan(spec.resize.resize, spec.resize.image_size, spec.resize.map_hw, says=str(stuck))
        return replace(spec, resize=plan)

    def ask():
        while not stuck.exists():
            time.sleep(LOOKS_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(job_module, "decode_spec", stuck_decode_spec)
    monkeypatch.setattr(stopping, "DRAIN_S", 0.2)
    threading.Thread(target=ask).start()
    with pytest.raises(Stopped):
        run_annotate(images, out, batch_size=4, decode_timeout_s=50)
    with camlake.open(str(out)) as lake:
        (run,) = lake.runs
        assert run.status == "interrupted"
        assert 0 < len(lake.arrow("images")) < 11
    monkeypatch.undo()
    assert run_annotate(images, out, batch_size=4).counts.annotated == 11 - run.counts.annotated


def test_a_signal_ends_a_worker_that_loads_its_network(images, tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "annotate_spec", loading(sleep))
    monkeypatch.setattr(stopping, "DRAIN_S", 0.2)
    threading.Timer(2, os.kill, [os.getpid(), signal.SIGTERM]).start()
    with pytest.raises(Stopped):
        run_annotate(images, tmp_path)


def test_a_server_that_died_is_replaced(images, tmp_path):
    worker_server().close()
    assert run_annotate(images, tmp_path).counts.annotated == 11


def test_two_processes_commit_what_one_commits(images, tmp_path):
    assert run_annotate(images, tmp_path, actors=2, batch_size=2, images_per_commit=3).counts.annotated == 11
    commits = sorted(tmp_path.glob("_runs/*/commits/*.json"))
    records = [json.loads(path.read_text()) for path in commits]
    assert [record["images"] + record["rejected"] for record in records] == [2, 4, 4, 2]
    assert verify(*connect(str(tmp_path), StorageConfig())).problems == ()


def test_a_killed_run_leaves_no_process(images, tmp_path):
    words = [sys.executable, "-m", "jobs.annotate", images, "--out", tmp_path / "out", "--model", "camlake_demo"]
    process = subprocess.Popen(
        [*map(str, words), "--batch-size", "1", "--images-per-commit", "1", "--max-rejected", "1"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(tmp_path.glob("out/_runs/*/commits/*.json")) and process.poll() is None:
        time.sleep(LOOKS_EVERY_S)
    others = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(others, timeout=30)
    assert len(gone) >= 2
    assert not alive


def test_a_program_without_a_main_guard_runs_once_and_loads_neither_ray_nor_a_compiler(images, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import sys
            import camlake
            print("begun")
            lake = camlake.annotate(input={str(images)!r}, out={str(tmp_path / "out")!r}, model="camlake_demo",
                                    max_rejected=1.0)
            print(lake.runs[-1].counts.annotated, sorted({{"ray", "torch._dynamo", "sympy"}} & {{*sys.modules}}))
        """)
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["begun", "11", "[]"]


def test_a_long_run_is_tried_out_on_ray_unless_nothing_is_open(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = AnnotateConfig.resolve({"input": "in", "out": "out", "device": "cpu"})
    assert [choose_engine(config, planned) for planned in (19_999, 20_000)] == ["local", "ray"]
    chosen = config.model_copy(update={"batch_size": 32, "actors": (2, 2), "compile": "off", "decode": "local"})
    assert choose_engine(chosen, 20_000) == "local"
    assert choose_engine(config.model_copy(update={"engine": "local"}), 20_000) == "local"


@pytest.mark.parametrize(
    ("options", "environment", "engine"),
    [
        ({}, {}, "local"),
        ({"engine": "ray"}, {}, "ray"),
        ({"address": "auto"}, {}, "ray"),
        ({}, {"RAY_ADDRESS": "10.0.0.1:6379"}, "ray"),
        ({"engine": "local"}, {"RAY_ADDRESS": "10.0.0.1:6379"}, "local"),
        ({"decode": "remote"}, {}, "ray"),
    ],
)
def test_the_engine_of_auto(options, environment, engine, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = AnnotateConfig.resolve({"input": "in", "out": "out", "device": "cpu", **options})
    assert choose_engine(config, 1) == engine
    servers = []
    monkeypatch.setattr(engine_choice, "worker_server", lambda: servers.append("started"))
    import_ahead(config)
    assert len(servers) == (engine == "local")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"engine": "local", "address": "10.0.0.1"}, "--engine local: allowed: without --address, here '10.0.0.1'"),
        ({"engine": "local", "decode": "remote"}, "--decode remote: allowed with --engine local: auto, local, gpu"),
        ({"engine": "slurm"}, "--engine 'slurm': Input should be 'auto', 'local' or 'ray'"),
    ],
)
def test_options_that_do_not_go_together(options, line):
    with pytest.raises(UsageError, match=f"^{re.escape(line)}"):
        AnnotateConfig.resolve({"input": "in", "out": "out", **options})


def test_what_it_says(images, tmp_path, capsys):
    config = {"input": str(images), "out": str(tmp_path), "model": "camlake_demo", "max_rejected": 1.0}
    manifest = annotate(AnnotateConfig.resolve(config), Screen())
    said = capsys.readouterr().err
    assert "Ray" not in said
    assert f"run {manifest.run_id}" in said.splitlines()
