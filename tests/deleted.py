"""An output whose runs list real inputs and write made-up rows, for the tests of deleted inputs."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipeline.outputs.reader import open_lake
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.commit import done_images
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.plan.planning import make_plan, read_plan_slice
from pipeline.storage.lake.plan.tombstones import commit_tombstones, images_in_scope
from pipeline.storage.lake.run import RunRequest, open_run
from schemas.input_options import AS_IT_IS
from schemas.options.config import StorageConfig
from schemas.runs import Counts
from tests.fake_lake import MODEL, SETTINGS, image_id, manifest_of, rows_of, schemas

LOCAL = StorageConfig()


def as_planned(rows: pa.Table, planned: dict[str, dict]) -> pa.Table:
    """Return made-up rows with the ids and versions of the planned inputs, which are given by their made-up ids."""
    old = rows["image_id"].to_pylist()
    for name in {"image_id", "etag", "size_bytes", "modified_at"} & set(rows.schema.names):
        at = rows.schema.get_field_index(name)
        field = rows.schema.field(at)
        rows = rows.set_column(at, field, [pa.array([planned[each][name] for each in old], field.type)])
    return rows


class Output:
    """An output whose runs list real inputs and write made-up rows: no network is needed."""

    def __init__(self, out, storage=LOCAL):
        self.out, self.storage = str(out), storage
        self.fs, self.root = connect(self.out, storage)

    def run(self, input_, on_deleted="keep", *, how=AS_IT_IS, model=MODEL, dies_at=None, **options) -> Counts:
        """Do what ``annotate`` does and return the counts; ``dies_at`` is "begin" or "tombstones"."""
        lineage = manifest_of("r", model).lineage
        request = RunRequest(self.out, self.storage, model, SETTINGS, {"input": str(input_)}, lineage)
        with open_run(request) as opened:
            listing = list_inputs(str(input_), self.storage, out=self.out, how=how)
            scoped = images_in_scope(
                self.fs, self.root, model, str(input_), listing.scope, in_containers=listing.kind != "folder"
            )
            done = done_images(self.fs, self.root, model)
            plan_dir = LakePaths(self.root).plan_dir(opened.manifest.run_id)
            options |= {"rows_per_slice": 100, "in_output": scoped, "hide_deleted": on_deleted == "hide"}
            plan = make_plan(listing, done, self.fs, self.root, plan_dir, **options)
            run = opened.begin(plan.counts)
            if dies_at == "begin":
                return plan.counts
            commit_tombstones(run, plan.tombstones)
            if dies_at == "tombstones":
                return plan.counts
            for number, one in enumerate(plan.slices):
                planned = {image_id(row["uri"]): row for row in read_plan_slice(self.fs, self.root, one).to_pylist()}
                uris = dict.fromkeys([row["uri"] for row in planned.values()], "v")
                rows = rows_of(run.manifest.run_id, uris, at=datetime.now(UTC))
                tables = {table: as_planned(each, planned) for table, each in rows.items()}
                run.committer(schemas()).commit(f"{number:06d}", tables)
            return run.finish().counts

    def shown(self) -> list[str]:
        """Return the last names of the images in the current rows; all tables have the same images."""
        with open_lake(self.out, self.storage) as lake:
            ids = [
                sorted(set(lake.arrow(table, ["image_id"])["image_id"].to_pylist()))
                for table in ("images", "boxes", "heatmaps", "features")
            ]
            assert ids[1:] == ids[:1] * 3
            uris = lake.arrow("images", ["uri"])["uri"].to_pylist()
        return sorted(uri.rpartition("/")[2] for uri in uris)

    def check(self) -> None:
        """Assert that ``verify`` finds nothing wrong."""
        assert verify(self.fs, self.root).problems == ()


def fill(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def gone(path: Path) -> Path:
    """Move a file away and return where it is, with its time."""
    (outside,) = (parent.parent for parent in path.parents if parent.name == "in")
    return path.rename(outside / f"away-{path.name}")
