"""One run at a time: what the others are told, how they wait, and how an output is freed."""

import json
import os
from math import inf

import pytest

from jobs.terminal.program import main
from pipeline.storage.lake.lease import Lease, acquire_waiting
from pipeline.storage.lake.lease_holder import generation_path, newest_holder
from schemas.errors import HeldError, LeaseError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.reading import RunsConfig, VerifyConfig
from tests.fake_lake import FakeLake

ONE = "20261130T020000.000-aaaaaa"


@pytest.fixture
def camlake(capsys, monkeypatch):
    """Run the program in this process; returns status, standard output and the last line of standard error."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["camlake", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err.splitlines()[-1] if captured.err else ""

    return run


def rewritten(lake: FakeLake, lease: Lease, **changes) -> None:
    """Change the document of a lease, which is not renewed any more."""
    lease._stop.set()
    lease._thread.join()
    path = generation_path(lake.root, lease.generation)
    lake.fs.pipe_file(path, json.dumps(json.loads(lake.fs.cat_file(path)) | changes).encode())


def test_every_writing_verb_ends_with_status_5(camlake, local, tmp_path):
    local.run({"s3://b/1.jpg": "v1"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"not read")
    other = FakeLake(str(tmp_path / "other"))
    with Lease.acquire(local.fs, local.root, ONE), Lease.acquire(other.fs, other.root, ONE):
        for words in (
            ("verify", local.out, "--repair"),
            ("annotate", tmp_path / "in", "--out", local.out, "--model", "camlake_demo", "--engine", "local"),
            ("rebox", local.out, "--out", other.out, "--threshold", "0.3", "--box-rule", "paper"),
        ):
            status, out, said = camlake(*words)
            assert (status, out) == (HeldError.exit_status, "") == (5, "")
            assert f"is being written by run {ONE} (process {os.getpid()} on " in said
            assert "--wait waits for its end" in said


def test_a_lost_lease_is_no_held_output():
    assert LeaseError.exit_status == 1


def test_a_run_waits_for_the_other_one_and_says_so_once(lake):
    first, said, slept, now = Lease.acquire(lake.fs, lake.root, ONE), [], [], [0.0]

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds
        if len(slept) == 3:
            first.release()

    lease = acquire_waiting(lake.fs, lake.root, "two", 3600, said.append, clock=lambda: now[0], sleep=sleep)
    assert lease.generation == 2
    assert len(slept) == 3
    assert all(2.5 <= seconds <= 5 for seconds in slept)
    assert said[0].startswith(f"waiting up to 3600 s: {lake.root} is being written by run {ONE}")
    assert said[1:] == ["the output is free; going on"]
    lease.release()


@pytest.mark.parametrize(("wait_s", "tries"), [(0, 1), (1, 2)])
def test_the_wait_has_an_end(local, wait_s, tries):
    slept, now = [], [0.0]

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    with Lease.acquire(local.fs, local.root, ONE), pytest.raises(HeldError):
        acquire_waiting(local.fs, local.root, "two", wait_s, lambda text: None, clock=lambda: now[0], sleep=sleep)
    assert len(slept) == tries - 1
    assert sum(slept) == wait_s


@pytest.mark.parametrize(
    ("given", "wait_s"), [(None, 0), ("0", 0), ("90", 90), (2.5, 2.5), ("forever", inf), (0, 0), ("1e3", 1000)]
)
def test_how_long_to_wait(given, wait_s):
    assert AnnotateConfig.resolve({"input": "i", "out": "o", "wait": given}).wait_s == wait_s


@pytest.mark.parametrize("given", ["-1", "inf", "nan", "soon", ""])
def test_what_is_no_time_to_wait(given):
    with pytest.raises(UsageError, match=rf"^--wait {given!r}: allowed: seconds, 0 or more, or forever$"):
        AnnotateConfig.resolve({"input": "i", "out": "o", "wait": given})


def test_options_that_do_not_go_together():
    with pytest.raises(UsageError, match=r"^--wait 5.0: allowed: with --repair"):
        VerifyConfig.resolve({"out": "o", "wait": 5})
    with pytest.raises(UsageError, match=r"^--force: allowed: with --unlock"):
        RunsConfig.resolve({"out": "o", "force": True})
    with pytest.raises(UsageError, match=r"^--watch: allowed: without --unlock"):
        RunsConfig.resolve({"out": "o", "watch": True, "unlock": True})


def test_a_living_holder_keeps_the_output_unless_it_is_forced(camlake, local):
    first = Lease.acquire(local.fs, local.root, ONE)
    status, out, said = camlake("runs", local.out, "--unlock")
    assert status == HeldError.exit_status
    assert out.startswith(f"run {ONE} (process {os.getpid()} on ")
    assert " holds the output; unless it renews its lease, that expires at 20" in out
    assert "may be alive; --force takes the output from it" in said
    first.assert_held()
    status, out, _ = camlake("runs", local.out, "--unlock", "--force")
    assert status == 0
    assert out.splitlines()[1] == f"{local.out} is free; the next run goes on where {ONE} stopped"
    with pytest.raises(HeldError, match="another run took this output over"):
        first.assert_held()
    assert newest_holder(local.fs, local.root).released
    first.release()
    with Lease.acquire(local.fs, local.root, "next") as lease:
        assert lease.generation == 3


def test_the_output_of_a_dead_process_and_an_expired_lease_are_freed(camlake, local):
    rewritten(local, Lease.acquire(local.fs, local.root, ONE), process_started="1")
    status, out, _ = camlake("runs", local.out, "--unlock")
    assert (status, "the process has ended, and the next run takes the output over" in out) == (0, True)
    gone = {"machine": "elsewhere", "host": "elsewhere", "expires_at": "2026-11-30T02:00:00Z"}
    rewritten(local, Lease.acquire(local.fs, local.root, ONE), **gone)
    status, out, _ = camlake("runs", local.out, "--unlock")
    assert (status, "on elsewhere) held the output; its lease expired at 2026-11-30 02:00:00 UTC" in out) == (0, True)


def test_an_output_that_nobody_holds_needs_no_unlocking(camlake, local):
    assert camlake("runs", local.out, "--unlock")[:2] == (0, f"{local.out}: no run has ever held it\n")
    Lease.acquire(local.fs, local.root, ONE).release()
    status, out, _ = camlake("runs", local.out, "--unlock")
    assert (status, out.startswith(f"nobody holds the output; run {ONE} ")) == (0, True)
    assert newest_holder(local.fs, local.root).run_id == ONE
