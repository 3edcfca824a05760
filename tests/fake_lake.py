"""Outputs for the storage tests: the real code commits them, and the rows need no network. The tests damage them."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import connect
from pipeline.storage.lake.commit import Committer, finish_run, remove_leftovers, start_run
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.layout import LakePaths, new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.whole_objects import write_whole
from schemas.options.config import StorageConfig
from schemas.reasons import Reason
from schemas.runs import CommitRecord, Counts, DataFile, Lineage, RunManifest
from schemas.tables import PLAN, TABLES, FeatureType, Table, network_types, written_schemas

MODEL = "tiny-12345678"
CHANNELS = 4
DATE = "2026-11-23"
START = datetime(2026, 11, 23, 5, 0, tzinfo=UTC)
SETTINGS = {"outputs": ["boxes", "heatmaps", "features"], "topk": 2}


def image_id(uri: str) -> str:
    """Return the 32 hexadecimal digits that identify a uri."""
    return hashlib.md5(uri.encode(), usedforsecurity=False).hexdigest()


def schemas(dtype: FeatureType = "float32") -> dict[Table, pa.Schema]:
    """Return the schema of every table for CHANNELS channels."""
    return written_schemas(TABLES, network_types(CHANNELS, dtype))


def version(uri: str, etag: str) -> dict[str, Any]:
    """Return the columns that identify one version of an image."""
    return {
        "image_id": image_id(uri),
        "uri": uri,
        "etag": etag,
        "size_bytes": 1000 + len(etag),
        "modified_at": START - timedelta(days=1),
    }


def rows_of(
    run_id: str,
    images: Mapping[str, str],
    rejected: Mapping[str, Reason] | None = None,
    at: datetime = START,
    boxes: int = 2,
    dtype: FeatureType = "float32",
) -> dict[Table, pa.Table]:
    """Return a task's tables.

    ``images`` maps uri to etag; each image has ``boxes`` boxes. ``rejected`` maps uri to the reason of the rejection.
    """
    rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for uri, etag in images.items():
        key = {"image_id": image_id(uri), "run_id": run_id}
        top = {"top1_class_id": 7, "top1_label": "cat", "top1_prob": 0.5, "n_boxes": boxes, "annotated_at": at}
        shape = {"width_px": 64, "height_px": 48, "format": "JPEG"}
        rows["images"].append(version(uri, etag) | key | shape | top)
        rows["features"].append(key | {"feature": [1.0, 2.0, 3.0, float(len(uri))]})
        for rank in range(boxes):
            kind = {"rank": rank, "class_id": 7 + rank, "label": "cat" if rank == 0 else "dog"}
            edges = {"xmin": 1.0, "ymin": 2.0, "xmax": 33.0, "ymax": 26.0, "area_frac": 0.25, "box_score": None}
            cut = {"class_prob": 0.5, "component": 0, "threshold": 0.2, "method": "cam", "uri": uri}
            rows["boxes"].append(key | kind | edges | cut)
            heat = {"heat_h": 2, "heat_w": 3, "heat_min": -1.0, "heat_max": 1.0, "heat": [0, 51, 102, 153, 204, 255]}
            rows["heatmaps"].append(key | kind | heat)
    for uri, reason in (rejected or {}).items():
        why = {"stage": reason.stage, "reason_code": reason, "detail": "as said", "permanent": reason.permanent}
        rows["quarantine"].append(version(uri, "v1") | why | {"run_id": run_id, "rejected_at": at})
    return {table: pa.Table.from_pylist(rows[table], schema=schema) for table, schema in schemas(dtype).items()}


@dataclass
class FakeLake:
    """An output at the URL ``out``. Each call of ``run`` adds a run that starts later than the run before it."""

    out: str
    storage: StorageConfig = field(default_factory=StorageConfig)
    hours: int = 0

    @property
    def fs(self) -> AbstractFileSystem:
        """Return the output's filesystem."""
        return connect(self.out, self.storage)[0]

    @property
    def root(self) -> str:
        """Return the output's path on its filesystem."""
        return connect(self.out, self.storage)[1]

    def path(self, relative: str) -> str:
        """Return the full path of an object of the output."""
        return LakePaths(self.root).full(relative)

    def committer(self, run_id: str, generation: int, model: str = MODEL) -> Committer:
        """Return the committer of a run's tasks."""
        return Committer(self.out, self.storage, run_id, model, DATE, generation, schemas())

    def write_plan(self, run_id: str, versions: Mapping[str, str]) -> None:
        """Write a run's plan; ``versions`` maps uri to etag."""
        rows = [version(uri, etag) | {"path": uri} for uri, etag in versions.items()]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=PLAN), sink)
        write_whole(self.fs, self.path(f"{LakePaths(self.root).plan_dir(run_id)}/00000.parquet"), sink.getvalue())

    def run(
        self,
        images: Mapping[str, str],
        rejected: Mapping[str, Reason] | None = None,
        *,
        model: str = MODEL,
        open_inputs: Sequence[str] = (),
        finish: bool = True,
        tasks: int = 1,
    ) -> RunManifest:
        """Write a whole run, or with ``finish=False`` a run that stops after its commits, and return its manifest.

        ``open_inputs`` are uris that the run plans but does not process. Each call has a later run id and a later time.
        """
        rejected = rejected or {}
        self.hours += 1
        at = START + timedelta(hours=self.hours)
        run_id = f"{at:%Y%m%dT%H%M%S}-{new_run_id()[-6:]}"
        planned = {**images, **dict.fromkeys(rejected, "v1"), **dict.fromkeys(open_inputs, "v1")}
        with Lease.acquire(self.fs, self.root, run_id) as lease:
            remove_leftovers(self.fs, self.root)
            manifest = manifest_of(run_id, model, len(planned), at)
            start_run(self.fs, self.root, manifest)
            self.write_plan(run_id, planned)
            names = sorted(images)
            for task in range(tasks):
                mine = {uri: images[uri] for uri in names[task::tasks]}
                rows = rows_of(run_id, mine, rejected if task == 0 else None, at)
                self.commit(run_id, lease.generation, f"{task:06d}", rows, model)
            return finish_run(self.fs, self.root, manifest, lease.generation) if finish else manifest

    def commit(
        self, run_id: str, generation: int, task: str, rows: Mapping[Table, pa.Table], model: str = MODEL
    ) -> CommitRecord:
        """Commit one task."""
        return self.committer(run_id, generation, model).commit(task, rows)


def manifest_of(run_id: str, model: str = MODEL, planned: int = 0, at: datetime = START) -> RunManifest:
    """Return the manifest of a run that has just started."""
    lineage = Lineage(
        camlake_version="0",
        code_version=None,
        python_version="3.11",
        packages={},
        model=model.partition("-")[0],
        model_digest="12345678" * 8,
        weights="none",
        weights_sha256="0" * 64,
        parameters=1,
        classes=10,
        preprocessing={},
    )
    return RunManifest(
        run_id=run_id,
        status="running",
        model=model,
        date=DATE,
        started_at=at,
        config={"input": "photos"},
        settings=SETTINGS,
        lineage=lineage,
        counts=Counts(listed=planned, planned=planned),
    )


def problems(lake: FakeLake) -> list[str]:
    """Return what verify finds wrong with the output."""
    found = verify(lake.fs, lake.root).problems
    assert not any("\n" in line for line in found)
    return list(found)


def file_of(run: RunManifest, table: str) -> DataFile:
    """Return the first file of a run's table."""
    return next(file for file in run.files if file.table == table)
