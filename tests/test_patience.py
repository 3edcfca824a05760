"""Outages of the output's store: minutes of growing random pauses, counted and said; nobody sleeps in these tests."""

import errno
import json
import os
import signal
import threading
import time as clock

import aiohttp
import pytest
from aiohttp.http_exceptions import ContentLengthError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError
from s3fs.errors import translate_boto_error

from pipeline.annotate.stopping import stop_requested
from pipeline.storage import patience
from pipeline.storage.lake.commit import Committer, finish_run, start_run
from pipeline.storage.lake.lease import Lease, lease_when_free
from pipeline.storage.lake.lease_holder import newest_holder
from pipeline.storage.lake.records import load_commits, load_runs
from pipeline.storage.lake.whole_objects import list_dir, read_many, read_whole, remove_many, write_whole
from pipeline.storage.patience import HURRIED_S, LIMIT_S, Patience
from pipeline.storage.store_failures import is_outage
from schemas.errors import HeldError, Stopped, StoreError
from schemas.options.config import StorageConfig
from tests.fake_lake import DATE, MODEL, manifest_of, rows_of, schemas
from tests.faulty_store import FakeTime, FaultyStore, patient_in

RUN = "20261130T020000.000-abcdef"


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture
def own(time, monkeypatch):
    """The patience of this process, by the fake time."""
    return patient_in(time, monkeypatch)


class Failing:
    """A request that fails ``times`` times."""

    def __init__(self, times, error=None):
        self.times, self.error = times, error or OSError(errno.EBUSY, "SlowDown")

    def __call__(self):
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return "answer"


def test_pauses_grow_to_the_longest_and_are_counted(time, own):
    with own.patient():
        assert own.ask("doing", Failing(8)) == "answer"
    assert time.slept == [1, 2, 4, 8, 16, 30, 30, 30]
    assert own.take_retries() == 8
    assert own.take_retries() == 0


def test_pauses_are_random_between_nothing_and_the_longest(monkeypatch):
    asked, clock = [], FakeTime()
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: asked.append((low, high)) or 0.1)
    impatient = Patience(clock.clock, clock.sleep)
    with impatient.patient():
        impatient.ask("doing", Failing(3))
    assert asked == [(0, 1), (0, 2), (0, 4)]
    assert clock.slept == [0.1, 0.1, 0.1]


def test_after_minutes_the_failure_is_final(time, own):
    with own.patient(), pytest.raises(StoreError) as caught:
        own.ask("s3://b/x can't be written", Failing(10**6))
    assert LIMIT_S <= time.now_s <= LIMIT_S + patience.LONGEST_PAUSE_S
    assert str(caught.value) == "s3://b/x can't be written: SlowDown (15 tries in 301 s)"


def test_without_a_run_the_first_failure_is_final(time, own):
    with pytest.raises(StoreError, match=r"^doing: SlowDown$"):
        own.ask("doing", Failing(1))
    assert time.slept == []


def test_mistakes_and_final_failures_are_not_repeated(time, own):
    with own.patient():
        for error, expected in [
            (ZeroDivisionError(), ZeroDivisionError),
            (PermissionError(errno.EACCES, "no"), StoreError),
            (OSError(errno.ENOSPC, "disk full"), StoreError),
            (HeldError("another run"), HeldError),
        ]:
            with pytest.raises(expected):
                own.ask("doing", Failing(1, error))
    assert time.slept == []


def test_an_outage_is_said_when_it_lasts_and_when_it_is_over(own):
    said = []
    with own.patient(said.append):
        own.ask("doing", Failing(2))
        assert said == []
        own.ask("doing", Failing(8))
    assert said == [
        "the output store has been failing for 7 s (SlowDown); each request is tried again for up to 5 minutes",
        "the output store has been failing for 61 s (SlowDown); each request is tried again for up to 5 minutes",
        "the output store has been failing for 91 s (SlowDown); each request is tried again for up to 5 minutes",
        "the output store answers again after 121 s",
    ]


def test_whoever_is_hurried_tries_for_seconds_only(time, own):
    with own.patient(), own.hurried(), pytest.raises(StoreError):
        own.ask("doing", Failing(10**6))
    assert HURRIED_S < time.now_s < 3 * HURRIED_S
    time.at.append((time.now_s + 100, own.hurry))
    began_s = time.now_s
    with own.patient(), pytest.raises(StoreError):
        own.ask("doing", Failing(10**6))
    own.hurry_no_more()
    assert 100 < time.now_s - began_s < 100 + 2 * patience.LONGEST_PAUSE_S


def test_a_real_pause_ends_when_the_process_is_hurried():
    real = Patience()
    with real.hurried(), real.patient(), pytest.raises(StoreError):
        real.ask("doing", Failing(10**6), limit_s=0.2)


def test_a_signal_in_the_middle_of_a_pause_ends_it(monkeypatch):
    """The process is asked to stop while it waits to try again: it tries for some moments more, not for minutes."""
    monkeypatch.setattr(patience, "HURRIED_S", 0.4)
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: 60)
    began_s = clock.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    def work():
        with stop_requested(), pytest.raises(StoreError, match=r"SlowDown \(\d+ tries in [012] s\)"):
            patience.PATIENCE.ask("doing", Failing(10**6))

    with patience.PATIENCE.patient(), pytest.raises(Stopped):
        work()
    assert clock.monotonic() - began_s < 10


def answered(status, code="Whatever"):
    """The error of s3fs for an answer of S3."""
    response = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, "PutObject"))


def web_answer(status):
    return aiohttp.ClientResponseError(None, (), status=status)


def broken_off():
    """The error of aiohttp for an answer that ends early; the status of its cause is no answer of the store."""
    error = aiohttp.ClientPayloadError("Response payload is not completed")
    error.__cause__ = ContentLengthError("Not enough data to satisfy content length header.")
    assert error.__cause__.code == 400
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        *((answered(status), True) for status in (500, 502, 503, 504, 429, 408)),
        *((answered(status), False) for status in (400, 401, 403, 404, 411, 501)),
        (answered(503, "SlowDown"), True),
        (answered(500, "InternalError"), True),
        (answered(409, "ConditionalRequestConflict"), True),
        (answered(412, "PreconditionFailed"), False),
        (answered(403, "SignatureDoesNotMatch"), False),
        (EndpointConnectionError(endpoint_url="http://x"), True),
        (NoCredentialsError(), False),
        (ParamValidationError(report="x"), False),
        (web_answer(503), True),
        (web_answer(404), False),
        (aiohttp.ServerDisconnectedError(), True),
        (broken_off(), True),
        (TimeoutError(), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (OSError(errno.EIO, os.strerror(errno.EIO)), False),
        (OSError(errno.ESTALE, "stale"), True),
        (OSError("pyarrow says damage so"), False),
        (FileExistsError(errno.EEXIST, "there"), False),
        (EOFError(), False),
        (ValueError(), False),
    ],
)
def test_what_passes(error, passes):
    assert is_outage(error) is passes


def test_whole_objects_are_read_written_listed_and_removed_through_an_outage(time, own):
    store = FaultyStore(lambda verb, path: time.now_s < 100)
    with own.patient():
        write_whole(store, "/out/a", b"1")
        assert time.now_s >= 100
        for request in (
            lambda: read_whole(store, "/out/a"),
            lambda: list_dir(store, "/out"),
            lambda: read_many(store, ["/out/a"])[0],
            lambda: remove_many(store, ["/out/a"]),
        ):
            before = time.now_s
            store.down = lambda verb, path, until=before + 50: time.now_s < until
            assert request() in (b"1", ["/out/a"], None)
            assert time.now_s >= before + 50
    assert own.take_retries() > 20


def test_a_lease_whose_answer_was_lost_is_ones_own(time, own):
    """The store creates the lease and answers 503; the second try finds it there, with the nonce of this process."""
    store = FaultyStore(lambda verb, path: verb == "put" and time.now_s < 10, loses_answers=True)
    with lease_when_free(store, "/out", RUN) as lease:
        assert lease.generation == 1
        assert newest_holder(store, "/out").run_id == RUN
        lease.assert_held()
        with pytest.raises(HeldError):
            Lease.acquire(store, "/out", "other")
    assert newest_holder(store, "/out").released


def test_a_lease_that_another_run_got_in_the_meantime_is_not_ones_own(time, own):
    """The first try writes nothing; when the store answers again, another run has the lease."""
    store = FaultyStore(lambda verb, path: time.now_s < 10 and verb == "put")

    def other_is_faster():
        store.down = lambda verb, path: False
        others.append(Lease.acquire(store, "/out", "other"))

    others = []
    time.at.append((5, other_is_faster))
    with pytest.raises(HeldError, match="run other"), lease_when_free(store, "/out", RUN):
        pass
    (other,) = others
    other.assert_held()
    other.release()


def test_a_wrong_place_fails_at_once(time, own):
    store = FaultyStore(lambda verb, path: True)
    with pytest.raises(StoreError), lease_when_free(store, "/out", RUN):
        pass
    assert time.slept == []


def test_a_run_outlasts_minutes_of_failing_commits(time, own, monkeypatch):
    """Every write and read fails for two minutes in the middle; nothing is lost or twice, and the retries are kept."""
    store, said = FaultyStore(), []
    monkeypatch.setattr("pipeline.storage.lake.commit.connect", lambda out, storage: (store, "/out"))
    with lease_when_free(store, "/out", RUN, say=said.append) as lease:
        manifest = manifest_of(RUN, planned=3)
        start_run(store, "/out", manifest)
        committer = Committer("/out", StorageConfig(), RUN, MODEL, DATE, lease.generation, schemas())
        committer.commit("000000", rows_of(RUN, {"s3://b/0.jpg": "v1"}))
        for task, loses_answers in enumerate((False, True), start=1):
            until_s = time.now_s + 120
            store.down, store.loses_answers = lambda verb, path, until=until_s: time.now_s < until, loses_answers
            record = committer.commit(f"{task:06d}", rows_of(RUN, {f"s3://b/{task}.jpg": "v1"}))
            assert record.retries > 5
            assert time.now_s >= until_s
        finish_run(store, "/out", manifest, lease.generation)
    assert [record.images for record in load_commits(store, "/out", RUN)] == [1, 1, 1]
    (run,) = load_runs(store, "/out")
    assert (run.status, run.counts.annotated) == ("complete", 3)
    assert {file.path for file in run.files} == {
        path.removeprefix("/out/") for path in store.find("/out") if "/part-" in path and "_runs" not in path
    }
    assert [text.partition(" for ")[0] for text in said][:1] == ["the output store has been failing"]
    assert [text.partition(" after ")[0] for text in said].count("the output store answers again") == 2


def test_a_release_that_the_store_refuses_leaves_the_lease_to_expire(time, own):
    store = FaultyStore()
    with lease_when_free(store, "/out", RUN):
        store.down = lambda verb, path: True
    assert time.now_s < 4 * HURRIED_S
    store.down = lambda verb, path: False
    assert not newest_holder(store, "/out").released
    assert json.loads(store.cat_file("/out/_runs/lease/00000001.json"))["run_id"] == RUN
