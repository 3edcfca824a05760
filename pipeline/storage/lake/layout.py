"""The paths of an output's objects: the names of its folders, files and runs.

<root>/<table>/model=<name>-<digest8>/date=<YYYY-MM-DD>/part-<run_id>-<task>-<digest of its content>.parquet
<root>/_runs/<run_id>/{lineage.json, began.json, manifest.json, plan/*.parquet, commits/<task>.json}
<root>/_runs/lease/<generation>.json
<root>/_runs/compactions/<id>-<model>.{json, dropped.parquet}
<root>/_runs/secrets/<run_id>/*.parquet, while the run lives
"""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from schemas.errors import StoreError
from schemas.tables import Table

RUNS = "_runs"
RUN_ID = re.compile(r"\d{8}T\d{6}(?:\.\d{3})?-[0-9a-f]{6}")
"""The run ids that ``new_run_id`` makes. Earlier versions wrote no milliseconds: their ids sort before all others of
the same second."""
DATA_NAME = re.compile(rf"part-({RUN_ID.pattern})-[A-Za-z0-9._-]+\.parquet")
"""The name of a data file; its first group is the run id."""
EMPTY_PATH = re.compile(r"quarantine/model=([^/]+)/date=([^/]+)/none-([0-9a-f]{8})\.parquet")
"""The path of a file of quarantine without rows, which no run commits; its groups are model, date and digest."""
HIDDEN_NAME = re.compile(rf"\.({DATA_NAME.pattern})\.compacted")
"""The name of a file that compaction made, while the files that it replaces are still there: only camlake's readers see
it. Its first group is its name afterwards."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class LakePaths:
    """The paths of an output's objects. They are relative to ``root`` and use ``/``; ``full`` makes them absolute."""

    root: str

    def full(self, path: str) -> str:
        """Return the full path of a relative path; raises StoreError for a path that leads outside the output."""
        if path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise StoreError(f"{path!r} leaves the output {self.root}: this output was not written by camlake")
        return f"{self.root.rstrip('/')}/{path}"

    def relative(self, path: str) -> str:
        """Return the path of a listing relative to ``root``."""
        return path.strip("/").removeprefix(self.root.strip("/")).lstrip("/")

    def data_path(self, table: Table, model: str, date: str, run_id: str, task: str) -> str:
        """Return the path of a task's rows of one table; raises ValueError for an argument that is no plain name."""
        _check_names(model, date, run_id, task)
        return f"{table}/model={model}/date={date}/part-{run_id}-{task}.parquet"

    def run_dir(self, run_id: str) -> str:
        """Return the folder of a run's documents; raises ValueError for a run id that is no plain name."""
        _check_names(run_id)
        return f"{RUNS}/{run_id}"

    def manifest_path(self, run_id: str) -> str:
        """Return the path of a run's manifest."""
        return f"{self.run_dir(run_id)}/manifest.json"

    def began_path(self, run_id: str) -> str:
        """Return the path of a run's manifest as it was when the run began; it is never written again."""
        return f"{self.run_dir(run_id)}/began.json"

    def lineage_path(self, run_id: str) -> str:
        """Return the path of a run's lineage."""
        return f"{self.run_dir(run_id)}/lineage.json"

    def plan_dir(self, run_id: str) -> str:
        """Return the folder of a run's plan: Parquet files of the schema PLAN."""
        return f"{self.run_dir(run_id)}/plan"

    def commits_dir(self, run_id: str) -> str:
        """Return the folder of a run's commit records."""
        return f"{self.run_dir(run_id)}/commits"

    def commit_path(self, run_id: str, task: str) -> str:
        """Return the path of a task's commit record; raises ValueError for a task that is no plain name."""
        _check_names(task)
        return f"{self.commits_dir(run_id)}/{task}.json"

    def foreground_file(self, model: str) -> str:
        """Return the full path of a model's figure/ground direction; raises ValueError for a name that is not plain."""
        _check_names(model)
        return self.full(f"_foreground/model={model}.safetensors")

    @property
    def compactions_dir(self) -> str:
        """Return the folder of the records of compactions, and of what they dropped."""
        return f"{RUNS}/compactions"

    @property
    def lease_dir(self) -> str:
        """Return the folder of the generations of the lease."""
        return f"{RUNS}/lease"

    @property
    def secrets_dir(self) -> str:
        """Return the folder of files that are removed when their run ends; it has a folder for each run."""
        return f"{RUNS}/secrets"

    def secrets_path(self, plan_file: str) -> str:
        """Return the path of the file with the secrets of a plan's file."""
        plan = PurePosixPath(plan_file)
        return f"{self.secrets_dir}/{plan.parent.parent.name}/{plan.name}"


def _check_names(*names: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} can't stand in a path: letters, digits, '.', '_' and '-' only")


def new_run_id() -> str:
    """Return a new run id, such as 20261123T045512.042-1a2b3c: the time in UTC, by which ids sort, and random bits."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}-{secrets.token_hex(3)}"
