"""What ``camlake runs`` tells of an output's runs, and how it follows the one in progress."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from jobs import runs as verb
from jobs.terminal.console import Screen
from pipeline.outputs.runs.run_list import list_runs, row_of, say_duration
from pipeline.outputs.runs.run_watch import WatchedRun, watch_run
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.records import load_runs, write_record
from schemas.errors import StoreError
from schemas.options.reading import RunsConfig
from schemas.reasons import Reason
from schemas.runs import RunSummary
from tests.fake_lake import START, FakeLake, manifest_of, problems, rows_of

FIXTURE = Path(__file__).with_name("fixtures") / "output_0_1" / "labels"
RUN = "20261130T020000.000-abcdef"


def shown(capsys, out, screen=None, **options):
    """Return the lines that the verb prints."""
    verb.run(RunsConfig.resolve({"out": str(out), **options}), screen or Screen())
    return capsys.readouterr().out.splitlines()


def test_every_run_has_a_line(capsys, local):
    first = local.run({"s3://b/1.jpg": "v1"}, {"s3://b/2.jpg": Reason.TRUNCATED, "s3://b/3.jpg": Reason.EMPTY})
    local.run({"s3://b/4.jpg": "v1"}, open_inputs=["s3://b/5.jpg"], finish=False)
    lines = shown(capsys, local.out)
    assert lines[0].split() == [local.out]
    assert [name in lines[2] for name in ("run", "state", "images/s", "rejected by reason")] == [True] * 4
    assert f" {first.run_id} " in lines[4]
    assert " complete " in lines[4]
    assert "1 empty, 1 truncated" in lines[4]
    assert " dead " in lines[5]
    assert lines[-1].startswith("nobody holds the output; run ")
    assert len(shown(capsys, local.out, last=1)) == len(lines) - 1


def test_machines_get_every_fact(capsys, local):
    run = local.run({"s3://b/1.jpg": "v1"}, {"s3://b/2.jpg": Reason.TRUNCATED})
    *rows, holder = map(json.loads, shown(capsys, local.out, Screen("json")))
    assert [row["run_id"] for row in rows] == [run.run_id]
    assert (rows[0]["state"], rows[0]["summary"], rows[0]["counts"]["rejected_by_reason"]) == (
        "complete",
        None,
        {"truncated": 1},
    )
    assert (holder["holder"]["run_id"], holder["holder"]["free"]) == (run.run_id, True)


def test_states_durations_and_rates():
    began = manifest_of(RUN, at=START)
    counts = began.counts.model_copy(update={"annotated": 30, "rejected": 10})
    ended = began.model_copy(update={"status": "complete", "ended_at": START + timedelta(seconds=20), "counts": counts})
    now = START + timedelta(seconds=50)
    row = row_of(ended, None, now)
    assert (row.state, row.seconds, row.images_per_s) == ("complete", 20, 2)
    assert row_of(began, None, now).seconds is None
    assert row_of(began, None, now).cells[3] == "?"
    summary = RunSummary(seconds=8, images_per_s=5, retries=3)
    assert row_of(ended.model_copy(update={"summary": summary}), None, now).cells[-3:] == ["5.0", 3, ""]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_in_words(seconds, text):
    assert say_duration(seconds) == text


def test_an_older_output_is_listed(capsys):
    lines = shown(capsys, FIXTURE)
    assert sum(" complete " in line for line in lines) == 2


def test_a_place_without_runs_is_said(local):
    with pytest.raises(StoreError, match="no camlake output here"):
        list_runs(local.fs, local.root)


def begun(lake: FakeLake, planned: int):
    manifest = manifest_of(RUN, planned=planned)
    start_run(lake.fs, lake.root, manifest)
    return manifest


def test_a_run_in_progress_is_followed_by_what_it_writes(lake):
    """The holder commits between two looks; each commit record is read once."""
    now, seen = [100.0], []
    with Lease.acquire(lake.fs, lake.root, RUN) as lease:
        watched = WatchedRun(lake.fs, lake.root, RUN, clock=lambda: now[0])
        assert watched.look().text == f"{RUN} has begun no run yet: it plans, compacts or repairs"
        manifest = begun(lake, planned=7)
        assert watched.look().text == f"run {RUN}: 0/7 committed, 0 rejected"
        lake.commit(RUN, lease.generation, "000000", rows_of(RUN, {"s3://b/1.jpg": "v1", "s3://b/2.jpg": "v1"}))
        now[0] += 2
        found = watched.look()
        assert found.text == f"run {RUN}: 2/7 committed, 1.0 images/s, 0 rejected, 5 s left"
        assert found.facts["left_s"] == 5
        rows = rows_of(RUN, {"s3://b/3.jpg": "v1", "s3://b/4.jpg": "v1"}, {"s3://b/5.jpg": Reason.EMPTY})
        record = lake.commit(RUN, lease.generation, "000001", rows)
        path = lake.path(f"_runs/{RUN}/commits/000001.json")
        write_record(lake.fs, path, record.model_copy(update={"retries": 3}))
        now[0] += 2
        end = " 1 rejected, 3 requests repeated, 2 s left"
        assert watched.look().text == f"run {RUN}: 5/7 committed, 1.2 images/s,{end}"
        row = list_runs(lake.fs, lake.root)[0][0]
        assert (row.state, row.run.counts.annotated, row.run.counts.rejected) == ("running", 4, 1)

        def finish_after_the_look(_: float) -> None:
            more = rows_of(RUN, {"s3://b/6.jpg": "v1", "s3://b/7.jpg": "v1"})
            lake.commit(RUN, lease.generation, "000002", more)
            finish_run(lake.fs, lake.root, manifest, lease.generation)

        assert watch_run(lake.fs, lake.root, lambda text, **_: seen.append(text), finish_after_the_look) == RUN
    assert [text.partition(":")[2] for text in seen] == [" 5/7 committed, 1 rejected, 3 requests repeated"]
    assert watch_run(lake.fs, lake.root, pytest.fail) is None


def test_watching_ends_with_a_holder_that_dies(local):
    seen = []
    lease = Lease.acquire(local.fs, local.root, RUN)
    begun(local, planned=7)
    watch_run(local.fs, local.root, lambda text, **_: seen.append(text), lambda _: lease.release())
    assert len(seen) == 1
    assert list_runs(local.fs, local.root)[0][0].state == "dead"


def test_retries_of_commits_are_in_the_summary_and_nothing_is_wrong_with_the_output(local):
    with Lease.acquire(local.fs, local.root, RUN) as lease:
        manifest = begun(local, planned=2)
        local.write_plan(RUN, {"s3://b/1.jpg": "v1", "s3://b/2.jpg": "v1"})
        for task, uri in enumerate(("s3://b/1.jpg", "s3://b/2.jpg")):
            record = local.commit(RUN, lease.generation, f"{task:06d}", rows_of(RUN, {uri: "v1"}))
            path = local.path(f"_runs/{RUN}/commits/{task:06d}.json")
            write_record(local.fs, path, record.model_copy(update={"retries": task + 1}))
        summary = RunSummary(seconds=2, images_per_s=1, bytes_in=1000, retries=10)
        finish_run(local.fs, local.root, manifest.model_copy(update={"summary": summary}), lease.generation)
    (run,) = load_runs(local.fs, local.root)
    written = sum(path.stat().st_size for path in Path(local.out).rglob("part-*.parquet") if "_runs" not in path.parts)
    assert (run.summary.retries, run.summary.bytes_in, run.summary.bytes_out) == (13, 1000, written)
    assert problems(local) == []
    said = run.summary.sentence
    assert said.startswith("1.0 images/s in 2.0 s; 1.0 kB read, ")
    assert said.endswith("; 13 requests repeated")
