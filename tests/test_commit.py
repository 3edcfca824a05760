"""Rows become part of the dataset all or not at all."""

import os
import pickle
import re
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.lake import commit
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.layout import LakePaths, new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.records import load_commits, load_runs
from pipeline.storage.lake.whole_objects import list_data_files, write_whole
from schemas.errors import LeaseError, StoreError
from schemas.reasons import Reason
from schemas.runs import CommitRecord, Lineage
from schemas.tables import TABLES
from tests.fake_lake import CHANNELS, DATE, MODEL, START, FakeLake, manifest_of, rows_of, schemas


def test_layout_names_and_keeps_inside():
    layout = LakePaths("/data/out")
    path = layout.data_path("boxes", MODEL, DATE, "r1", "000007")
    assert path == f"boxes/model={MODEL}/date={DATE}/part-r1-000007.parquet"
    assert layout.full(path) == f"/data/out/{path}"
    assert layout.relative(f"/data/out/{path}") == path
    assert LakePaths("bucket/out").relative("bucket/out/_runs/lease") == "_runs/lease"
    assert layout.commit_path("r1", "000007") == "_runs/r1/commits/000007.json"
    for bad in ("../r1", "a/b", "", ".hidden", "a b"):
        with pytest.raises(ValueError, match="can't stand in a path"):
            layout.data_path("boxes", MODEL, DATE, "r1", bad)
    for bad in ("../x.parquet", "/etc/passwd", "boxes/../../x"):
        with pytest.raises(StoreError, match="leaves the output"):
            layout.full(bad)


def test_run_ids_sort_by_time_and_differ():
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) == 50
    assert f"{START:%Y%m%dT%H%M%S}-ffffff" < f"{START + timedelta(seconds=1):%Y%m%dT%H%M%S}-000000" < max(ids)


def test_a_failed_local_write_leaves_nothing(tmp_path, monkeypatch):
    fs = FakeLake(str(tmp_path)).fs
    target = tmp_path / "a" / "b.json"
    write_whole(fs, str(target), b"old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(StoreError, match="disk full"):
        write_whole(fs, str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_files_and_the_folders_that_name_them_are_synced(tmp_path, monkeypatch):
    synced, original = [], os.fsync

    def fsync(handle):
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    target = tmp_path / "a" / "b" / "c.json"
    write_whole(FakeLake(str(tmp_path)).fs, str(target), b"new")
    assert synced[0].name.endswith(".camlake-tmp")
    assert set(synced[1:]) == {target.parent, tmp_path / "a", tmp_path}
    synced.clear()
    write_whole(FakeLake(str(tmp_path)).fs, str(target), b"newer")
    assert synced[1:] == [target.parent]


def test_a_run_is_committed_and_accounted_for(lake):
    images = {f"s3://b/{n}.jpg": "v1" for n in range(5)}
    done = lake.run(images, {"bad.jpg": Reason.CORRUPT, "slow.jpg": Reason.DECODE_TIMEOUT}, tasks=2)
    assert done.status == "complete"
    assert done.counts.model_dump(exclude_defaults=True) == {
        "listed": 7,
        "planned": 7,
        "annotated": 5,
        "rejected": 2,
        "boxes": 10,
        "rejected_by_reason": {"corrupt": 1, "decode_timeout": 1},
    }
    assert load_runs(lake.fs, lake.root) == [done]
    assert {file.path: file.size_bytes for file in done.files} == list_data_files(lake.fs, lake.root)
    assert sum(file.rows for file in done.files if file.table == "heatmaps") == 10
    lineage = Lineage.model_validate_json(lake.fs.cat_file(lake.path(f"_runs/{done.run_id}/lineage.json")))
    assert lineage == done.lineage
    again = finish_run(lake.fs, lake.root, manifest_of(done.run_id, planned=7), 1)
    assert again.files == done.files
    assert again.counts.annotated == done.counts.annotated


def test_the_same_task_again_gives_the_same_files(local):
    with Lease.acquire(local.fs, local.root, "r1") as lease:
        rows = rows_of("r1", {"b": "v1", "a": "v1", "c": "v1"}, {"d": Reason.EMPTY})
        first = local.commit("r1", lease.generation, "000000", rows)
        contents = {path: local.fs.cat_file(local.path(path)) for path in list_data_files(local.fs, local.root)}
        local.fs.rm_file(local.path("_runs/r1/commits/000000.json"))
        shuffled = {table: part.take(pa.array(range(len(part))[::-1], pa.int64())) for table, part in rows.items()}
        assert local.commit("r1", lease.generation, "000000", shuffled) == first
        assert contents == {path: local.fs.cat_file(local.path(path)) for path in contents}
        other = local.commit("r1", lease.generation, "000000", rows_of("r1", {"z": "v1"}))
        assert other == first, "a committed task keeps its record"
        assert load_commits(local.fs, local.root, "r1") == [first]
    assert first == CommitRecord.model_validate_json(first.model_dump_json())
    assert (first.images, first.rejected) == (3, 1)


@pytest.mark.parametrize(
    ("meanwhile", "winner"),
    [("to_parquet", "the fast one"), ("assert_generation_held", "the fast one"), ("write_record", "the slow one")],
)
def test_two_attempts_at_one_task_never_mix(local, monkeypatch, meanwhile, winner):
    """A node that was cut off goes on with a task that another has taken: one file, boxes, is the same for both."""
    run_id = new_run_id()
    manifest = manifest_of(run_id, planned=1)
    start_run(local.fs, local.root, manifest)
    slow, fast = (rows_of(run_id, {"a": "v1"}, at=START + timedelta(hours=hour)) for hour in (0, 1))
    of_fast: list[CommitRecord] = []
    original = getattr(commit, meanwhile)

    def overtaken(*args):
        monkeypatch.setattr(commit, meanwhile, original)
        of_fast.append(local.commit(run_id, lease.generation, "000000", fast))
        return original(*args)

    with Lease.acquire(local.fs, local.root, run_id) as lease:
        monkeypatch.setattr(commit, meanwhile, overtaken)
        of_slow = local.commit(run_id, lease.generation, "000000", slow)
        local.write_plan(run_id, {"a": "v1"})
        run = finish_run(local.fs, local.root, manifest, lease.generation)
    (record,) = load_commits(local.fs, local.root, run_id)
    assert record == of_slow
    assert (of_slow == of_fast[0]) == (winner == "the fast one")
    assert {file.path: file.size_bytes for file in run.files} == list_data_files(local.fs, local.root)
    with pq.ParquetFile(local.path(run.files[0].path)) as file:
        annotated_at = file.read()["annotated_at"].to_pylist()
    assert annotated_at == [START + timedelta(hours=int(winner == "the fast one"))]


def test_a_committer_travels(local):
    with Lease.acquire(local.fs, local.root, "r1") as lease:
        committer = pickle.loads(pickle.dumps(local.committer("r1", lease.generation)))
        assert committer.commit("t", rows_of("r1", {"a": "v1"})).images == 1


def data_file(lake: FakeLake, table: str) -> str:
    """Return the only file of a table."""
    (path,) = [path for path in list_data_files(lake.fs, lake.root) if path.startswith(f"{table}/")]
    assert re.fullmatch(rf"{table}/model={MODEL}/date={DATE}/part-r1-t-[0-9a-f]{{8}}\.parquet", path)
    return lake.path(path)


def test_files_are_sorted_compressed_and_indexed(local):
    with Lease.acquire(local.fs, local.root, "r1") as lease:
        local.commit("r1", lease.generation, "t", rows_of("r1", {f"u{n}": "v1" for n in range(50)}))
    for table in ("images", "boxes", "heatmaps", "features"):
        path = data_file(local, table)
        with pq.ParquetFile(path) as file:
            assert file.schema_arrow.equals(schemas()[table])
            assert file.schema_arrow.metadata[b"camlake.schema_version"] == b"1"
            group = file.metadata.row_group(0)
            columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
            order = ["label", "image_id"] if table == "boxes" else ["image_id"]
            keys = list(zip(*(column.to_pylist() for column in file.read(order).select(order)), strict=True))
        assert keys == sorted(keys)
        assert {column.compression for column in columns.values()} == {"ZSTD"}
        assert columns["image_id"].has_offset_index
        assert columns["run_id"].has_dictionary_page
        assert group.sorting_columns[0].column_index == list(columns).index(order[0])
        varied = [name for name in columns if name.startswith(("feature.", "xmin", "class_prob"))]
        varied += ["image_id"] if table != "boxes" else []
        assert not any(columns[name].has_dictionary_page for name in varied)
        assert table != "heatmaps" or columns["heat.list.element"].has_dictionary_page
        assert not pq.read_schema(path).field("image_id").nullable


def damaged(name):
    rows = rows_of("r1", {"a": "v1", "b": "v1"}, {"c": Reason.EMPTY})
    images, boxes = rows["images"], rows["boxes"]
    null = pa.nulls(2, pa.string())
    wrong = {
        "missing column": {"images": images.drop_columns(["format"])},
        "extra column": {"images": images.append_column("more", pa.array([1, 2]))},
        "null in a required column": {"images": images.set_column(2, "uri", null)},
        "lossy type": {"boxes": boxes.set_column(3, "rank", pa.array([0.5, 1, 0, 1]))},
        "image twice": {"images": pa.concat_tables([images, images.slice(0, 1)])},
        "two endings": {"quarantine": rows_of("r1", {}, {"a": Reason.EMPTY})["quarantine"]},
        "orphan": {"boxes": rows_of("r1", {"z": "v1"})["boxes"]},
        "box of a rejected image": {"boxes": rows_of("r1", {"c": "v1"})["boxes"]},
        "another run": {"quarantine": rows_of("r2", {}, {"c": Reason.EMPTY})["quarantine"]},
        "undeclared table": {"masks": boxes},
    }
    return {**rows, **wrong[name]}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing column", "columns .'format'. are missing or not declared"),
        ("extra column", "columns .'more'. are missing or not declared"),
        ("null in a required column", "table images: .*uri"),
        ("lossy type", "table boxes: .*truncated"),
        ("image twice", "more than once"),
        ("two endings", "more than once"),
        ("orphan", "table boxes: rows of images that this task did not annotate"),
        ("box of a rejected image", "table boxes: rows of images that this task did not annotate"),
        ("another run", "another run than r1"),
        ("undeclared table", "declared no such table"),
    ],
)
def test_rows_that_contradict_are_refused(local, name, said):
    with Lease.acquire(local.fs, local.root, "r1") as lease, pytest.raises(StoreError, match=said):
        local.commit("r1", lease.generation, "t", damaged(name))
    assert list_data_files(local.fs, local.root) == {}
    assert load_commits(local.fs, local.root, "r1") == []


def test_types_that_mean_the_same_are_taken(local):
    rows = rows_of("r1", {"a": "v1"})
    large = pa.schema(
        [one.with_type(pa.large_string()) if one.type == pa.string() else one for one in TABLES["images"].columns]
    )
    with Lease.acquire(local.fs, local.root, "r1") as lease:
        local.commit("r1", lease.generation, "t", {**rows, "images": rows["images"].cast(large)})
    path = data_file(local, "images")
    assert pq.read_schema(path).field("uri").type == pa.string()


def test_a_lost_lease_stops_a_commit(lake):
    first = Lease.acquire(lake.fs, lake.root, "r1")
    lake.commit("r1", first.generation, "000000", rows_of("r1", {"a": "v1"}))
    first.release()
    with Lease.acquire(lake.fs, lake.root, "r2"):
        with pytest.raises(LeaseError, match="took this output over"):
            lake.commit("r1", first.generation, "000001", rows_of("r1", {"b": "v1"}))
        with pytest.raises(LeaseError, match="took this output over"):
            finish_run(lake.fs, lake.root, manifest_of("r1", planned=1), first.generation)
    assert [record.task for record in load_commits(lake.fs, lake.root, "r1")] == ["000000"]


def test_a_run_that_does_not_add_up_is_not_finished(local):
    with pytest.raises(StoreError, match="planned 3 images, but 1 are annotated and 1 rejected"):
        local.run({"a": "v1"}, {"b": Reason.EMPTY}, open_inputs=["c"])
    assert [run.status for run in load_runs(local.fs, local.root)] == ["running"]


def test_half_floats_are_written_as_such(local):
    with Lease.acquire(local.fs, local.root, "r1") as lease:
        rows = rows_of("r1", {"b": "v1", "a": "v1"}, dtype="float16")
        committer = local.committer("r1", lease.generation)
        half = type(committer)(**{**vars(committer), "schemas": schemas("float16")})
        record = half.commit("t", rows)
    path = local.path(next(file.path for file in record.files if file.table == "features"))
    assert pq.read_schema(path).field("feature").type == pa.list_(pa.float16(), CHANNELS)
    assert set(schemas()) == set(TABLES)
