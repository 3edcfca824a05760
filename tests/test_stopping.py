"""SIGTERM and Ctrl-C: what was decided is committed, the lease is released, the run is marked, the status is 4."""

import json
import os
import signal
import sys
import threading

import duckdb
import pytest

from pipeline.annotate import stopping
from pipeline.annotate.stopping import DRAIN_S, raising_at_sigterm, stop_requested
from pipeline.graph import cluster
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import Stopped, StoreError
from schemas.options.config import StorageConfig
from tests.jobs_on import run_annotate
from tests.stopping_jobs import N_IMAGES, stopped_job


def not_called():
    raise AssertionError("the end took too long")


@pytest.mark.parametrize(
    ("engine", "number"),
    [
        ("local", signal.SIGTERM),
        ("local", signal.SIGINT),
        pytest.param("ray", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_is_in_order_and_goes_on(tmp_path, engine, number):
    ending, run, decided = stopped_job(tmp_path, engine, number)
    assert ending.status == Stopped.exit_status
    assert ending.last_line == "camlake: stopped; run the same command again to go on"
    assert ending.left == []
    assert run.status == "interrupted"
    assert (2 if engine == "local" else 8) <= run.counts.annotated <= N_IMAGES
    assert run.counts.annotated >= decided or ending.took_s > DRAIN_S  # Then it is given up.
    out = tmp_path / "out"
    (lease,) = out.glob("_runs/lease/*.json")
    assert json.loads(lease.read_text())["released"]
    counts = run_annotate(tmp_path / "images", out).counts
    assert (counts.already_done, counts.annotated) == (run.counts.annotated, N_IMAGES - run.counts.annotated)
    assert verify(*connect(str(out), StorageConfig())).problems == ()


def test_the_first_signal_asks_and_the_second_one_ends():
    seen = []

    def work():
        with raising_at_sigterm(not_called), stop_requested() as event:
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append(event.is_set())
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("went on")

    with pytest.raises(Stopped):
        work()
    assert seen == [True]


def test_whoever_does_not_end_in_time_is_given_up(monkeypatch):
    monkeypatch.setattr(stopping, "GIVE_UP_S", 0.2)
    given_up = threading.Event()

    def work():
        with raising_at_sigterm(given_up.set), stop_requested():
            assert not given_up.wait(0.4)
            os.kill(os.getpid(), signal.SIGTERM)
            assert given_up.wait(10)

    with pytest.raises(Stopped):
        work()


def test_a_store_that_refuses_after_a_signal_leaves_the_run_stopped():
    def work(number):
        with stop_requested():
            os.kill(os.getpid(), number)
            raise StoreError("SlowDown")

    with pytest.raises(Stopped):
        work(signal.SIGTERM)
    with pytest.raises(StoreError):
        work(0)


def test_an_error_that_a_library_makes_of_a_signal_is_a_stop():
    """DuckDB asks Python for the schema of a table, and turns what this raises into an error of its own."""

    class Table:
        def __arrow_c_stream__(self, requested_schema=None):
            os.kill(os.getpid(), signal.SIGTERM)

    def work(table):
        with raising_at_sigterm(not_called), duckdb.connect() as con:
            con.from_arrow(table)

    with pytest.raises(Stopped):
        work(Table())
    with pytest.raises(duckdb.InvalidInputException):
        work("no table")


def test_a_signal_while_ray_starts_is_a_stop():
    before = signal.getsignal(signal.SIGTERM)

    def start():
        with cluster._own_sigterm():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        start()
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_a_signal_nothing_changes():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with raising_at_sigterm(not_called), stop_requested() as event:
        pass
    assert not event.is_set()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_in_another_thread_there_are_no_signals():
    seen = []

    def work():
        with raising_at_sigterm(not_called), stop_requested() as event:
            seen.append(event.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
