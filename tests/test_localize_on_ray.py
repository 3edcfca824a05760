"""``camlake localize`` on Ray: rows equal to those of threads, after failures and signals too; where Ray is used."""

import os
import random
import signal
import subprocess
import time

import pytest

from pipeline.graph import cluster
from pipeline.graph.localize_on_ray import work_on_ray
from pipeline.outputs.heads.localize import open_localize
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.records import load_runs
from schemas.errors import Stopped, StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.options.localize import LocalizeConfig
from tests import jobs_on
from tests.benchmarks.soak_kills import kill, nodes
from tests.feature_lake import add_run, feature_lake, head_by_hand
from tests.localizing import IMAGES, lake_at, localized, problems

COMMITS = 240
"""Commits of one image, so many that the run outlasts the killing."""


@pytest.fixture
def source(tmp_path):
    return feature_lake(str(tmp_path / "labels"), IMAGES)


@pytest.mark.usefixtures("ray_session")
def test_ray_writes_the_same_rows_and_goes_on_after_a_failure(source, tmp_path):
    path, _ = head_by_hand(tmp_path)
    localized(source, head=path)
    lost = sorted(source.fs.glob(f"{source.root}/feature_maps/**/*.parquet"))[-1]
    content = source.fs.cat_file(lost)
    source.fs.rm_file(lost)
    with pytest.raises(StoreError, match=r"^\S+\.parquet is missing; `camlake verify` says what else$"):
        localized(source, "on ray", head=path, engine="ray")
    source.fs.pipe_file(lost, content)
    counts = localized(source, "on ray", head=path, engine="ray").counts
    assert (counts.already_done, counts.planned) == (IMAGES // 2 + 1, IMAGES // 2)
    assert problems(source, "on ray") == ()
    assert rows_of(source, "on ray") == rows_of(source)


def rows_of(source, out="new"):
    """Return the rows of an output of localize, without what tells one run from another."""
    of_run = {"images": "run_id, annotated_at", "heatmaps": "run_id", "boxes": "run_id"}
    with lake_at(source, out) as lake:
        queries = [f"SELECT * EXCLUDE ({columns}) FROM {table} ORDER BY ALL" for table, columns in of_run.items()]
        return [lake.sql(query).fetchall() for query in queries]


def commits_in(folder):
    return len([*folder.glob("_runs/*/commits/*.json")])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_and_a_machine_that_die_cost_nothing(source, tmp_path):
    add_run(source, range(IMAGES, IMAGES + COMMITS), tasks=COMMITS)
    path, _ = head_by_hand(tmp_path)
    localized(source, head=path)
    with nodes() as cluster, (tmp_path / "said").open("w+") as said:
        words = [source.out, "--head", path, "--out", str(tmp_path / "on ray"), "--address", cluster.address]
        words = jobs_on.command("localize", *words, "--box-rule", "paper", "--threshold", "0.5")
        with subprocess.Popen(words, cwd=jobs_on.ROOT, stderr=said) as command:
            try:
                for kind, commits in (("task", 1), ("node", COMMITS // 4)):
                    while command.poll() is None and (done := commits_in(tmp_path / "on ray")) < commits:
                        time.sleep(0.01)
                    assert done < COMMITS
                    assert kill(kind, command, cluster, random.Random(0))
                command.wait(200)
            finally:
                command.kill()
        said.seek(0)
        assert not command.returncode, said.read()
    assert problems(source, "on ray") == ()
    assert rows_of(source, "on ray") == rows_of(source)


@pytest.mark.usefixtures("ray_session")
def test_on_ray_a_signal_commits_what_was_begun(source, tmp_path):
    for number in range(14):  # Commits of one image, of which the four CPUs of this Ray take eight at a time.
        add_run(source, [IMAGES + number])
    path, _ = head_by_hand(tmp_path)
    options = {"labels": source.out, "out": str(tmp_path / "new"), "head": path, "box_rule": "paper", "threshold": 0.5}
    seen = []

    def signal_once(done):
        seen.append(done)
        if done and not any(seen[:-1]):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped), open_localize(LocalizeConfig.resolve(options)) as opened:
        work_on_ray(opened, print, signal_once)
    (run,) = load_runs(*connect(str(tmp_path / "new"), StorageConfig()))
    committed = run.counts.annotated + run.counts.rejected
    assert run.status == "interrupted"
    assert 0 < seen[-1] <= committed < IMAGES + 15
    assert localized(source, head=path, engine="ray").counts.already_done == committed
    assert problems(source) == ()


def test_where_the_work_is_done(source, tmp_path, monkeypatch):
    def connects(address):
        raise UsageError(f"Ray at {address}")

    def place(**options):
        try:
            localized(source, str(len(places)), head=path, **options)
        except UsageError as error:
            assert not (tmp_path / f"{len(places)}/_runs/manifests").exists()
            return str(error)
        return "here"

    path, _ = head_by_hand(tmp_path)
    monkeypatch.setattr(cluster, "ray_cluster", connects)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    places = []
    for options in ({}, {"engine": "ray"}, {"address": "ray://x"}, {"engine": "local", "address": "ray://x"}):
        places.append(place(**options))
    monkeypatch.setenv("RAY_ADDRESS", "1.2.3.4:6379")
    places += [place(), place(engine="local")]
    refusal = "--engine local: allowed: without --address, here 'ray://x'"
    assert places == ["here", "Ray at None", "Ray at ray://x", refusal, "Ray at None", "here"]
    assert localized(source, "0", head=path).counts.planned == 0, "nothing to do: no Ray"
