"""A Ray cluster whose parts die or vanish: annotation goes on and accounts for every image, or ends with one line."""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.records import load_runs
from schemas.options.config import StorageConfig
from tests.benchmarks.soak_kills import nodes
from tests.jobs_on import ROOT, command
from tests.killing import LOOKS_EVERY_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

N_IMAGES = 160


@pytest.fixture(scope="module")
def cluster():
    with nodes() as started:
        yield started


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deaths")
    write_corpus(folder, N_IMAGES, seed=8, size_hw=(48, 64), broken=0)
    return folder / "images"


def start(cluster, photos, out, *options):
    words = command("annotate", photos, "--out", out, "--topk", 2, "--actors", "2:3", *options)
    words += ["--batch-size", "4", "--images-per-commit", "8", "--box-rule", "paper", "--address", cluster.address]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def a_raylet(cluster):
    os.kill(cluster.raylet.pid, signal.SIGKILL)


def a_task(cluster):
    """Kill a worker that runs a task, no actor."""
    while not (found := [one for one in cluster.workers() if is_task(one)]):
        time.sleep(LOOKS_EVERY_S)
    os.kill(found[0].pid, signal.SIGKILL)


def is_task(process):
    try:
        name = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return name.startswith("ray::") and not any(part in name for part in ("IDLE", "MapWorker", "Actor", "Agent"))


def a_vanished_node(cluster):
    """Let a node answer nothing until Ray gives it up; then its processes wake up, and their tasks go on too.

    The tasks of a node that stays away without a word are waited for until Ray's own keepalive ends, minutes later.
    """
    processes = [cluster.raylet, *cluster.raylet.children(recursive=True)]
    for process in processes:
        process.suspend()
    while cluster.second_lives:
        time.sleep(LOOKS_EVERY_S)
    for process in processes:
        process.resume()


def a_drained_node(cluster):
    """Announce in the instance's metadata that AWS takes a node back; it goes when it has been drained."""
    asked = []

    class Metadata(BaseHTTPRequestHandler):
        def do_PUT(self):
            self.answer(200, b"token")

        def do_GET(self):
            assert self.path == "/latest/meta-data/spot/instance-action"
            assert self.headers["X-aws-ec2-metadata-token"] == "token"
            asked.append(self.path)
            self.answer(404 if len(asked) == 1 else 200, b'{"action": "terminate", "time": "2026-11-30T08:22:00Z"}')

        def answer(self, status, body):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bin_folder = Path(sys.executable).parent
        own = {"SPOT_METADATA": f"http://127.0.0.1:{server.server_port}", "SPOT_LOOK_EVERY_S": "0.1"}
        own["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
        words = [ROOT / "jobs/schedule/spot_notice.sh", "--address", cluster.address, "--node-id", cluster.second_id]
        done = subprocess.run(words, env=os.environ | own, capture_output=True, text=True, check=False, timeout=60)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert 'spot notice: {"action": "terminate"' in done.stdout
    assert len(asked) > 1
    assert cluster.second_drains


@pytest.mark.parametrize("dies", [a_task, a_raylet, a_vanished_node, a_drained_node])
def test_a_run_goes_on_and_every_image_is_accounted_for(cluster, photos, tmp_path, dies):
    out = tmp_path / "out"
    with start(cluster, photos, out, "--model", "camlake_demo") as process:
        while not list(out.glob("_runs/*/commits/*.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(LOOKS_EVERY_S)
        dies(cluster)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    if dies in {a_raylet, a_vanished_node, a_drained_node}:
        cluster.kill_one()
    fs, root = connect(str(out), StorageConfig())
    (run,) = load_runs(fs, root)
    assert (run.status, run.counts.annotated) == ("complete", N_IMAGES)
    assert verify(fs, root).problems == ()


def test_an_actor_that_cannot_start_is_one_line(cluster, photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    options = ("--model", "tests.their_networks:dies_in_workers", "--labels", names)
    with start(cluster, photos, tmp_path / "out", *options) as process:
        _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said
    last = said.splitlines()[-1]
    assert last.startswith("camlake: "), said
    assert "while they loaded the network" in last
