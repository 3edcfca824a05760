"""Readers see committed rows only, and of each image only the latest."""

import subprocess
import sys
import uuid
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.outputs import reader as camlake
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.query import CommittedFiles, add_views, connect_duckdb
from pipeline.storage.lake.records import committed_files, load_runs
from schemas.errors import StoreError, UsageError
from schemas.reasons import Reason
from schemas.tables import TABLES
from tests.fake_lake import DATE, MODEL, START, FakeLake, image_id, rows_of

OTHER = "other-87654321"


def opened(lake: FakeLake) -> camlake.Lake:
    return camlake.open(lake.out, model="*", endpoint_url=lake.storage.endpoint_url)


def etags(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["uri"].to_pylist(), table["etag"].to_pylist(), strict=True))


def test_superseded_rows_are_hidden_in_every_table(lake):
    lake.run({"a": "v1", "b": "v1", "c": "v1"}, {"d": Reason.CORRUPT}, tasks=2)
    last = lake.run({"a": "v2", "d": "v2"}, {"b": Reason.TRUNCATED})
    lake.run({"a": "v1"}, model=OTHER)
    with opened(lake) as found:
        assert found.models == [OTHER, MODEL]
        assert len(found.runs) == 3
        assert etags(found.arrow("images", model=MODEL)) == {"a": "v2", "c": "v1", "d": "v2"}
        assert etags(found.arrow("quarantine", model=MODEL)) == {"b": "v1"}
        assert etags(found.arrow("images", model=OTHER)) == {"a": "v1"}
        counts = {table: len(found.relation(table)) for table in TABLES}
        assert counts == {
            "images": 4,
            "boxes": 8,
            "heatmaps": 8,
            "features": 4,
            "feature_maps": 0,
            "foreground": 0,
            "quarantine": 1,
        }
        for table in ("boxes", "heatmaps", "features"):
            rows = found.arrow(table, ["run_id"], f"image_id = '{image_id('a')}'", MODEL)
            assert set(rows["run_id"].to_pylist()) == {last.run_id}
        assert found.sql("SELECT count(*) FROM all_images").fetchall() == [(6,)]
        assert found.sql("SELECT count(*) FROM all_boxes").fetchall() == [(12,)]


def test_columns_types_and_partitions(lake):
    lake.run({"a": "v1"})
    with opened(lake) as found:
        images = found.arrow("images")
        assert images.schema.names[-2:] == ["model", "date"]
        assert images["model"].to_pylist() == [MODEL]
        assert images["date"].to_pylist() == [date.fromisoformat(DATE)]
        assert images["annotated_at"].to_pylist() == [START + timedelta(hours=1)]
        assert str(images.schema.field("annotated_at").type) in {"timestamp[us, tz=UTC]", "timestamp[us, tz=Etc/UTC]"}
        heat = found.arrow("heatmaps", ["heat", "rank"], "rank = 1")
        assert heat["heat"].to_pylist() == [[0, 51, 102, 153, 204, 255]]
        assert heat.schema.names == ["heat", "rank"]
        assert found.arrow("features", ["feature"])["feature"].to_pylist() == [[1.0, 2.0, 3.0, 1.0]]
        frame = found.pandas("boxes", ["label", "xmin"], "class_prob >= 0.5")
        assert sorted(frame["label"]) == ["cat", "dog"]
        assert frame["xmin"].dtype == np.float32
        query = "SELECT label FROM boxes WHERE label = $label"
        assert found.sql(query, {"label": "dog"}).fetchall() == [("dog",)]
        assert found.sql("SELECT label FROM boxes WHERE rank = ?", [0]).fetchall() == [("cat",)]
        assert found.connection().sql("SELECT count(*) FROM images WHERE date = DATE '2026-11-23'").fetchall() == [(1,)]


def test_empty_tables_have_their_columns_and_types(local):
    local.run({"a": "v1"})
    with opened(local) as full:
        expected = {table: dict(zip(r.columns, r.types, strict=True)) for table, r in relations(full).items()}
    empty = FakeLake(f"{local.out}-empty")
    empty.run({}, {"bad": Reason.EMPTY})
    with opened(empty) as found:
        for table, relation in relations(found).items():
            if table == "quarantine":
                expected[table] = dict(zip(relation.columns, relation.types, strict=True))
                continue
            assert len(relation) == 0
            assert {name: str(kind) for name, kind in zip(relation.columns, relation.types, strict=True)} == {
                name: str(kind) for name, kind in expected[table].items()
            }
    with opened(local) as found:
        relation = found.relation("quarantine")
        assert relation.columns == list(expected["quarantine"])
        assert [str(kind) for kind in relation.types] == [str(kind) for kind in expected["quarantine"].values()]
        assert len(found.arrow("quarantine")) == 0


def relations(lake: camlake.Lake) -> dict[str, duckdb.DuckDBPyRelation]:
    return {table: lake.relation(table) for table in TABLES}


def test_half_done_work_is_never_seen(local):
    local.run({"a": "v1"})
    dead = local.run({"b": "v1", "c": "v1"}, tasks=2, finish=False)
    local.fs.rm_file(local.path(f"_runs/{dead.run_id}/commits/000001.json"))
    with opened(local) as found:
        assert sorted(etags(found.arrow("images"))) == ["a", "b"]
        assert [run.status for run in found.runs] == ["complete", "running"]
        assert found.runs[1].counts.annotated == 1


def test_wrong_use_is_said_in_one_line(local, tmp_path):
    with pytest.raises(StoreError, match="no camlake output here"):
        camlake.open(str(tmp_path / "nothing"))
    local.run({"a": "v1"})
    with opened(local) as found:
        with pytest.raises(UsageError, match="table 'masks': allowed: images"):
            found.relation("masks")
        with pytest.raises(UsageError, match=r"column 'x; DROP VIEW boxes': boxes has image_id"):
            found.arrow("boxes", ["x; DROP VIEW boxes"])
        with pytest.raises(UsageError, match=f"model 'resnet': this output has {MODEL}"):
            found.pandas("boxes", model="resnet")
        with pytest.raises(duckdb.Error):
            found.arrow("boxes", where="no such thing")


def test_manifests_can_not_point_outside(local):
    run = local.run({"a": "v1"})
    outside = replace(run.files[0], path="../secret.parquet")
    changed = run.model_copy(update={"files": (outside,)})
    local.fs.pipe_file(local.path(f"_runs/{run.run_id}/manifest.json"), changed.model_dump_json().encode())
    with pytest.raises(StoreError, match="leaves the output"):
        opened(local)


def test_plain_sql_over_the_files_gives_the_same_rows(local):
    local.run({"a": "v1", "b": "v1"}, {"c": Reason.EMPTY})
    local.run({"a": "v2"}, {"b": Reason.EMPTY})
    written = [table for table in TABLES if table not in {"feature_maps", "foreground"}]
    globs = {table: f"'{local.out}/{table}/**/*.parquet'" for table in written}
    with opened(local) as found, duckdb.connect() as plain:
        for table in written:
            sources = {"images": globs["images"], "quarantine": globs["quarantine"]}
            query = camlake.CURRENT_ROWS_SQL.format(table=globs[table], **sources)
            columns = "image_id, run_id, model, date"
            expected = sorted(found.relation(table).project(columns).fetchall())
            assert sorted(plain.sql(f"SELECT {columns} FROM ({query})").fetchall()) == expected
            assert expected
    assert plain_pandas(local.out) == {"a": "v2"}


def plain_pandas(out: str) -> dict[str, str]:
    """Return uri → etag of the current images with pandas alone."""
    images = ds.dataset(f"{out}/images", partitioning="hive").to_table().to_pandas()
    rejected = ds.dataset(f"{out}/quarantine", partitioning="hive").to_table().to_pandas()
    key = ["model", "image_id", "run_id"]
    decided = pd.concat(
        [
            images[key].assign(decided_at=images["annotated_at"]),
            rejected[key].assign(decided_at=rejected["rejected_at"]),
        ]
    )
    latest = decided.sort_values("decided_at").drop_duplicates(["model", "image_id"], keep="last")
    current = images.merge(latest[key], on=key)
    return dict(zip(current["uri"], current["etag"], strict=True))


class Counting(MemoryFileSystem):
    """Counts what is asked of a store."""

    protocol = "counting"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.asked.append("read")
        return super().cat_file(path, start=start, end=end, **kwargs)

    def info(self, path, **kwargs):
        self.asked.append("info")
        return super().info(path, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self.asked.append("ls")
        return super().ls(path, detail=detail, **kwargs)


def test_remote_files_are_read_by_ranges_alone():
    lake = FakeLake(f"memory://{uuid.uuid4().hex}/out")
    lake.run({f"u{n}": "v1" for n in range(8)}, tasks=8)
    files = committed_files(load_runs(lake.fs, lake.root))
    store = Counting()
    with add_views(connect_duckdb(), store, lake.root, files) as con:
        assert con.sql("SELECT count(DISTINCT image_id) FROM images").fetchall() == [(8,)]
    assert set(store.asked) == {"read"}
    assert len(store.asked) <= 4 * 8, "footers are read once, columns by one range each"


def test_committed_files_are_all_there_is():
    lake = FakeLake(f"memory://{uuid.uuid4().hex}/out")
    run = lake.run({"a": "v1"})
    view = CommittedFiles(lake.fs, LakePaths(lake.root), run.files[:1])
    name = f"camlake://{run.files[0].path}"
    assert view.glob(name) == [run.files[0].path]
    assert view.glob("camlake://other.parquet") == []
    with view.open(name) as file:
        assert file.read(4) == b"PAR1"
        assert file.seek(-4, 2) == run.files[0].size_bytes - 4
        assert file.read() == b"PAR1"
        assert file.read(1) == b""
    with pytest.raises(FileNotFoundError):
        view.open(f"camlake://{run.files[1].path}")
    with pytest.raises(PermissionError):
        view.open(name, "wb")


def test_heatmap_values_and_sizes(local):
    local.run({"a": "v1"})
    with opened(local) as found:
        row = found.pandas("heatmaps", where="rank = 0").iloc[0]
    expected = np.array([[-1.0, -0.6, -0.2], [0.2, 0.6, 1.0]], np.float32)
    cam = camlake.heatmap(row)
    assert cam.dtype == np.float32
    np.testing.assert_allclose(cam, expected, atol=1e-6)
    large = camlake.heatmap(row, (48, 64))
    assert large.shape == (48, 64)
    np.testing.assert_allclose(large, cv2.resize(expected, (64, 48), interpolation=cv2.INTER_LINEAR), atol=1e-6)
    np.testing.assert_allclose(camlake.heatmap(row, (4, 3))[:, 0], [-1.0, -0.7, -0.1, 0.2], atol=1e-6)
    constant = {"heat": [0, 0], "heat_h": 1, "heat_w": 2, "heat_min": 3.0, "heat_max": 3.0}
    assert camlake.heatmap(constant, (5, 7)).tolist() == [[3.0] * 7] * 5
    with pytest.raises(ValueError, match="reshape"):
        camlake.heatmap({**constant, "heat_w": 3})


def test_the_plain_script_of_a_user_ends_quietly(local):
    local.run({"a": "v1"})
    script = (
        f"from pipeline import camlake\nlake = camlake.open({local.out!r})\n"
        "boxes = lake.relation('boxes')\nprint(len(boxes), len(lake.pandas('images')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2 1\n", "")


def test_rows_are_read_while_a_run_goes_on(local):
    local.run({"a": "v1"})
    later = START + timedelta(hours=9)
    with Lease.acquire(local.fs, local.root, "r9") as lease, opened(local) as before:
        local.commit("r9", lease.generation, "t", rows_of("r9", {"a": "v2"}, at=later))
        assert etags(before.arrow("images")) == {"a": "v1"}
        with opened(local) as after:
            assert etags(after.arrow("images")) == {"a": "v1"}, "a run without a manifest does not count"
    assert Path(local.root).is_dir()
