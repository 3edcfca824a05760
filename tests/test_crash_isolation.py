"""An image that kills the process that works on it: real processes, really killed, and one rejected row in the end."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from pipeline.annotate.crash_isolation import TRIES, CrashIsolation
from pipeline.graph.progress import ActorAttempts, start_progress

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Worker:
    """Does what Ray Data's actors do with a table: the same again after each death."""

    def __init__(self, progress, diary):
        self._isolation, self._diary = CrashIsolation(ActorAttempts(progress)), diary

    def run(self, images):
        return self._isolation.run(images, self._work)

    def _work(self, images):
        for name, reason in zip(images["image_id"].to_pylist(), images["reason_code"].to_pylist(), strict=True):
            if name == "poison" and reason is None:
                with Path(self._diary).open("a") as diary:
                    diary.write(f"{len(images)}\n")
                os.kill(os.getpid(), signal.SIGKILL)
        return images


def table(*names):
    text = pa.array([None] * len(names), pa.string())
    return pa.table({"image_id": list(names), "reason_code": text, "detail": text})


def test_the_culprit_alone_is_rejected(tmp_path):
    diary = tmp_path / "deaths.txt"
    progress = start_progress()
    worker = Worker.remote(progress, str(diary))
    rows = ray.get(worker.run.remote(table("a", "poison", "b")), timeout=120)
    assert rows["image_id"].to_pylist() == ["a", "poison", "b"]
    assert rows["reason_code"].to_pylist() == [None, "crashed", None]
    assert diary.read_text().split() == ["3"] * TRIES + ["1"] * TRIES
    assert ray.get(worker.run.remote(table("a", "b")))["reason_code"].null_count == 2


def test_a_suspicious_table_waits_until_nothing_is_beside_it():
    attempts, order = ActorAttempts(start_progress()), []
    isolation = CrashIsolation(attempts)
    assert [attempts.begin("1 from suspicious") for _ in range(TRIES)] == [1, 2, 3]
    is_at_work, may_end = threading.Event(), threading.Event()

    def slow(images):
        is_at_work.set()
        may_end.wait(60)
        order.append("slow")
        return images

    def quick(images):
        order.append("suspicious")
        return images

    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(isolation.run, table("innocent"), slow)
        is_at_work.wait(60)
        alone = pool.submit(isolation.run, table("suspicious"), quick)
        with pytest.raises(TimeoutError):
            alone.result(timeout=0.5)
        may_end.set()
        assert len(alone.result(60)) == len(beside.result(60)) == 1
    assert order == ["slow", "suspicious"]
