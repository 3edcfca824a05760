"""``camlake rebox`` killed with SIGKILL at work, and the next one: what was committed stays, the rest follows."""

import os

import pytest

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.options.config import StorageConfig
from schemas.options.rebox import ReboxConfig
from schemas.reasons import Reason
from tests.fake_lake import FakeLake
from tests.jobs_on import command
from tests.killing import kill_when
from tests.references.equal_rows import same_rows

COMMITS = 60
"""Of the source; rebox commits once for each, all of them within a second: it is held up at the last one."""


@pytest.mark.slow
def test_a_killed_rebox_goes_on_where_its_commits_end(tmp_path):
    source, whole, killed = (tmp_path / name for name in ("labels", "whole", "killed"))
    images = {f"{number:04d}.jpg": "v1" for number in range(2 * COMMITS)}
    FakeLake(str(source)).run(images, {"broken.jpg": Reason.TRUNCATED}, tasks=COMMITS)

    def again(out):
        return rebox(
            ReboxConfig.resolve({"labels": str(source), "out": str(out), "threshold": 0.5, "box_rule": "paper"}),
            Screen(),
        ).counts

    assert (again(whole).annotated, again(whole).planned) == (2 * COMMITS, 0)
    words = command("rebox", source, "--out", killed, "--threshold", "0.5", "--box-rule", "paper")
    maps, aside = max(source.glob("heatmaps/**/*.parquet")), tmp_path / "maps.parquet"
    maps.rename(aside)
    os.mkfifo(maps)  # Who reads it waits: nobody writes.
    kill_when(words, lambda: any(killed.glob("_runs/*/commits/*.json")))
    aside.rename(maps)
    committed = len(list(killed.glob("_runs/*/commits/*.json")))
    assert 0 < committed < COMMITS, "killed between its commits"
    counts = again(killed)
    assert counts.already_done in {2 * committed, 2 * committed + 1}, "the rejection is part of one commit"
    assert counts.already_done + counts.annotated + counts.rejected == 2 * COMMITS + 1
    for table in ("images", "boxes", "quarantine"):
        assert same_rows(whole, killed, table) > 0, table
    assert verify(*connect(str(killed), StorageConfig())).problems == ()
