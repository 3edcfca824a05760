"""One list of tables: an entry of it is all that rows, commits, views and verify need to know of a table."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from pipeline.outputs import reader as camlake
from pipeline.storage.lake.commit import Committer, finish_run, start_run
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.rows import IDENTITY, nest, row_schema, split_rows
from pipeline.storage.lake.whole_objects import list_data_files
from schemas.columns import IMAGE_ID, RUN_ID, URI
from schemas.errors import StoreError
from schemas.reasons import Reason
from schemas.tables import TABLES, TableSpec, network_types, optional_tables, written_schemas
from tests.fake_lake import CHANNELS, DATE, MODEL, FakeLake, image_id, manifest_of, version

RUN = "20261123T060000-abcdef"
SILHOUETTES = TableSpec(
    "silhouettes",
    "image",
    pa.schema([IMAGE_ID, RUN_ID, pa.field("side", pa.int32(), False), pa.field("cells", pa.list_(pa.uint8()), False)]),
    complete="n = 1",
    complete_as="one silhouette",
    repeated=frozenset({"run_id", "side"}),
)
"""A made-up table with one row an image, as maps of the whole image would be."""
POINTS = TableSpec(
    "points",
    "map",
    pa.schema([IMAGE_ID, RUN_ID, URI, pa.field("rank", pa.int32(), False), pa.field("x_px", pa.float32(), False)]),
    complete="n = 2 * n_boxes",
    complete_as="two points a box",
    order=("image_id", "rank"),
)
"""A made-up table with several rows an image."""
OUTPUTS = [*optional_tables(), "silhouettes", "points"]


@pytest.fixture
def _registered(monkeypatch):
    for spec in (SILHOUETTES, POINTS):
        monkeypatch.setitem(TABLES, spec.name, spec)


def wide_rows(images: list[str], rejected: list[str]) -> pa.Table:
    """Return wide rows: each image has one box, one map, one silhouette and two points, the second point first."""
    uris, accepted = [*images, *rejected], [True] * len(images) + [False] * len(rejected)
    counts = np.array(accepted, np.int64)
    given, n_rows = {"width_px": 64, "height_px": 48, "n_boxes": 1, "top1_class_id": 7}, len(uris)
    map_ = {"rank": [0], "class_id": [7], "label": ["cat"]}
    cut = {"class_prob": [0.5], "component": [0], "threshold": [0.2], "area_frac": [0.25], "method": ["cam"]}
    box = map_ | cut | {"xmin": [1.0], "ymin": [2.0], "xmax": [9.0], "ymax": [8.0], "box_score": [None]}
    heat = map_ | {"heat_h": [1], "heat_w": [2], "heat_min": [0.0], "heat_max": [1.0], "heat": [[0, 255]]}
    columns = {name: [version(uri, "v1")[name] for uri in uris] for name in IDENTITY}
    columns |= {name: [value if one else None for one in accepted] for name, value in given.items()}
    columns |= {"top1_prob": [0.5 if one else None for one in accepted]}
    columns |= {name: ["text" if one else None for one in accepted] for name in ("format", "top1_label")}
    columns |= {"decided_at": [datetime(2026, 11, 23, 6, tzinfo=UTC)] * n_rows}
    columns |= {"reason_code": [None if one else Reason.EMPTY for one in accepted]}
    columns |= {"detail": [None if one else "0 bytes" for one in accepted]}
    columns |= {"feature": [[1.0] * CHANNELS if one else None for one in accepted]}
    figure = {"fg_h": 1, "fg_w": 2, "fg_min": -0.5, "fg_max": 0.5, "fg": [0, 255]}
    columns |= {name: [value if one else None for one in accepted] for name, value in figure.items()}
    stored = {"map_h": 1, "map_w": 2, "channels": CHANNELS, "bits": 3, "codes": bytes(4)}
    columns |= {name: [value if one else None for one in accepted] for name, value in stored.items()}
    columns |= {"side": [2 if one else None for one in accepted]}
    columns |= {"cells": [[0, 1, 2, 3] if one else None for one in accepted]}
    for table, one, times in (("boxes", box, 1), ("heatmaps", heat, 1)):
        columns[table] = nest(table, {name: values * len(images) for name, values in one.items()}, counts * times)
    columns["points"] = nest("points", {"rank": [1, 0] * len(images), "x_px": [5.0, 4.0] * len(images)}, counts * 2)
    schema = row_schema(network_types(CHANNELS, "float32"))
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def commit(lake, tables) -> None:
    """Write the tables as a whole run that planned all of their inputs."""
    schemas = written_schemas(OUTPUTS, network_types(CHANNELS, "float32"))
    planned = dict.fromkeys(tables["images"]["uri"].to_pylist() + tables["quarantine"]["uri"].to_pylist(), "v1")
    manifest = manifest_of(RUN, planned=len(planned)).model_copy(update={"settings": {"outputs": OUTPUTS}})
    with Lease.acquire(lake.fs, lake.root, RUN) as lease:
        start_run(lake.fs, lake.root, manifest)
        lake.write_plan(RUN, planned)
        committer = Committer(lake.out, lake.storage, RUN, MODEL, DATE, lease.generation, schemas)
        committer.commit("000000", tables)
        finish_run(lake.fs, lake.root, manifest, lease.generation)


@pytest.mark.usefixtures("_registered")
class TestANewTable:
    def test_its_rows_come_out_of_the_wide_ones(self):
        tables = split_rows(wide_rows(["b", "a"], ["bad"]), RUN, OUTPUTS)
        assert set(tables) == set(TABLES)
        ids = sorted([image_id("a"), image_id("b")])
        silhouettes = {"run_id": RUN, "side": 2, "cells": [0, 1, 2, 3]}
        assert tables["silhouettes"].to_pylist() == [{"image_id": one} | silhouettes for one in ids]
        assert tables["points"]["x_px"].to_pylist() == [5.0, 4.0, 5.0, 4.0]
        assert tables["points"]["image_id"].to_pylist() == [ids[0], ids[0], ids[1], ids[1]]
        assert tables["quarantine"].select(["stage", "reason_code", "permanent"]).to_pylist() == [
            {"stage": "decode", "reason_code": "empty", "permanent": True}
        ]
        assert set(split_rows(wide_rows(["a"], []), RUN, ["points"])) == {"images", "quarantine", "points"}

    def test_it_is_committed_read_and_proven(self, local):
        commit(local, split_rows(wide_rows(["a", "b"], ["bad"]), RUN, OUTPUTS))
        assert {path.partition("/")[0] for path in list_data_files(local.fs, local.root)} == set(TABLES)
        report = verify(local.fs, local.root)
        assert report.problems == ()
        assert (report.facts["silhouettes"], report.facts["points"]) == (2, 4)
        with camlake.open(local.out) as lake:
            assert lake.arrow("points", ["rank", "x_px"])["rank"].to_pylist() == [0, 1, 0, 1], "sorted by its order"
            cells = lake.arrow("silhouettes")["cells"].to_pylist()
        assert cells == [[0, 1, 2, 3]] * 2

    def test_missing_and_foreign_rows_are_found(self, local):
        tables = split_rows(wide_rows(["a", "b"], []), RUN, OUTPUTS)
        only_a = split_rows(wide_rows(["a"], []), RUN, OUTPUTS)
        commit(local, tables | {"points": only_a["points"].slice(1), "silhouettes": only_a["silhouettes"]})
        assert list(verify(local.fs, local.root).problems) == [
            f"run {RUN}: 1 images don't have one silhouette, such as 'b'",
            f"run {RUN}: 2 images don't have two points a box, such as 'a'",
        ]
        with pytest.raises(StoreError, match="table points: rows of images that this task did not annotate"):
            commit(FakeLake(f"{local.out}-other"), only_a | {"points": tables["points"]})

    def test_a_column_of_another_type_is_found(self, local):
        tables = split_rows(wide_rows(["a"], []), RUN, OUTPUTS)
        commit(local, tables)
        (path,) = local.fs.glob(f"{local.root}/silhouettes/*/*/*.parquet")
        wrong = tables["silhouettes"].set_column(2, "side", pa.array([2], pa.int64()))
        data = to_parquet(wrong)
        local.fs.pipe_file(path, data)
        manifest = local.path(f"_runs/{RUN}/manifest.json")
        text = local.fs.cat_file(manifest).decode()
        (old,) = (f for f in camlake.open(local.out).runs[0].files if f.table == "silhouettes")
        changed = text.replace(f'"size_bytes": {old.size_bytes}', f'"size_bytes": {len(data)}')
        local.fs.pipe_file(manifest, changed.encode())
        assert any(one.endswith("of another type: side") for one in verify(local.fs, local.root).problems)

    def test_where_it_has_no_rows_it_is_an_empty_view(self, local):
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(TABLES, "points")
            local.run({"a": "v1"})
        with camlake.open(local.out) as lake:
            relation = lake.relation("points")
            assert (len(relation), relation.columns) == (
                0,
                ["image_id", "run_id", "uri", "rank", "x_px", "model", "date"],
            )


def test_wide_rows_have_each_column_once():
    names = row_schema(network_types(CHANNELS, "float16")).names
    assert len(names) == len(set(names))


def test_open_columns_are_given_by_the_run():
    features = TABLES["features"]
    with pytest.raises(KeyError, match="feature"):
        features.schema()
    half = features.schema(network_types(8, "float16"))
    assert half.field("feature").type == pa.list_(pa.float16(), 8)
    assert half.metadata == {b"camlake.table": b"features", b"camlake.schema_version": b"1"}
    assert features.odd_columns(half) == []
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float64(), 8), pa.float32()):
        assert features.odd_columns(half.set(2, pa.field("feature", kind))) == ["feature"]
    assert features.odd_columns(half.remove(0)) == ["image_id"]


def test_every_entry_is_whole():
    for name, spec in TABLES.items():
        assert (spec.name, spec.columns.names[:2]) == (name, ["image_id", "run_id"])
        assert bool(spec.complete) == bool(spec.complete_as) == spec.optional
        assert {*spec.order, *spec.repeated, *spec.open_columns} <= set(spec.columns.names)
        assert all(column.metadata[b"about"] for column in spec.columns)
