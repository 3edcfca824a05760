"""verify finds each kind of damage, and nothing in a sound output."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import load_commits, load_runs, write_record
from schemas.errors import StoreError
from schemas.reasons import Reason
from schemas.runs import DIGEST_BYTES, RunManifest
from tests.fake_lake import DATE, MODEL, FakeLake, file_of, problems, rows_of

OTHER = "other-87654321"


def rewrite(lake: FakeLake, run: RunManifest, table: str, rows: pa.Table) -> RunManifest:
    """Replace a committed file and its records, so that only its content is wrong."""
    old, data = file_of(run, table), to_parquet(rows)
    lake.fs.pipe_file(lake.path(old.path), data)
    digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
    new = replace(old, rows=len(rows), size_bytes=len(data), digest=digest)
    changed = run.model_copy(update={"files": tuple(new if file == old else file for file in run.files)})
    save(lake, changed)
    for record in load_commits(lake.fs, lake.root, run.run_id):
        files = tuple(new if file.path == old.path else file for file in record.files)
        rows_in = {table: sum(file.rows for file in files if file.table == table) for table in ("images", "quarantine")}
        counts = {"images": rows_in["images"], "rejected": rows_in["quarantine"], "files": files}
        path = lake.path(LakePaths(lake.root).commit_path(run.run_id, record.task))
        write_record(lake.fs, path, record.model_copy(update=counts))
    return changed


def save(lake: FakeLake, run: RunManifest) -> None:
    lake.fs.pipe_file(lake.path(f"_runs/{run.run_id}/manifest.json"), run.model_dump_json().encode())


def test_a_sound_output_has_no_problems(lake):
    lake.run({"a": "v1", "b": "v0", "c": "v1"}, {"bad": Reason.CORRUPT, "flaky": Reason.FETCH_FAILED}, tasks=2)
    lake.run({"a": "v2", "flaky": "v1"}, {"b": Reason.TRUNCATED})
    lake.run({"a": "v1"}, model=OTHER)
    lake.run({})
    report = verify(lake.fs, lake.root)
    assert report.problems == ()
    assert report.facts == {
        "runs": 4,
        "runs interrupted": 0,
        "inputs planned": 9,
        "images annotated": 4,
        "images rejected": 2,
        "images superseded": 3,
        "boxes": 12,
        "heatmaps": 12,
        "features": 6,
        "feature_maps": 0,
        "foreground": 0,
        "files": 4 * 2 + 1 + 4 + 1 + 4,
        "bytes": sum(file.size_bytes for run in load_runs(lake.fs, lake.root) for file in run.files),
    }


def test_no_output_is_an_error(local):
    with pytest.raises(StoreError, match="no camlake output here"):
        verify(local.fs, local.root)


def test_a_dead_run_is_unfinished_until_a_later_one_covers_it(local):
    local.run({"a": "v1"}, open_inputs=["b", "c"], finish=False)
    assert len(problems(local)) == 1
    assert "(running) left 2 inputs unfinished, such as 'b'" in problems(local)[0]
    local.run({"b": "v1"}, finish=False)
    assert len(problems(local)) == 1
    assert "(interrupted) left 1 inputs unfinished, such as 'c'" in problems(local)[0]
    local.run({}, {"c": Reason.EMPTY})
    assert problems(local) == []


def test_what_is_gone_from_the_input_is_no_longer_asked_for(local):
    local.run({"a": "v1"}, open_inputs=["deleted"], finish=False)
    last = local.run({"b": "v1"})
    assert problems(local) == []
    save(local, last.model_copy(update={"config": {"input": "elsewhere"}}))
    assert len(problems(local)) == 1
    left_out = last.counts.model_copy(update={"left_out": 1, "listed": last.counts.listed + 1})
    save(local, last.model_copy(update={"counts": left_out}))
    assert len(problems(local)) == 1


@pytest.mark.parametrize("table", ["images", "boxes", "heatmaps", "features", "quarantine"])
def test_a_file_that_is_gone(lake, table):
    run = lake.run({"a": "v1"}, {"b": Reason.EMPTY})
    path = file_of(run, table).path
    lake.fs.rm_file(lake.path(path))
    assert f"{path}: committed, but gone" in problems(lake)


def test_a_file_of_another_size_or_cut_short(local):
    run = local.run({"a": "v1"})
    file = file_of(run, "boxes")
    data = local.fs.cat_file(local.path(file.path))
    local.fs.pipe_file(local.path(file.path), data[:-1])
    assert problems(local)[0] == f"{file.path}: {len(data) - 1} bytes, but {len(data)} were committed"
    local.fs.pipe_file(local.path(file.path), data[:-1] + b"X")
    assert problems(local)[0].startswith(f"{file.path}: no readable Parquet file")


@pytest.mark.parametrize("table", ["images", "boxes", "heatmaps", "features", "quarantine"])
def test_a_flipped_bit_is_found_in_any_byte(local, table):
    run = local.run({"a": "v1"}, {"b": Reason.EMPTY})
    path = file_of(run, table).path
    data = local.fs.cat_file(local.path(path))
    rng = np.random.default_rng(0)
    for at in [4, len(data) - 9, *rng.integers(0, len(data), 8).tolist()]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        local.fs.pipe_file(local.path(path), bytes(flipped))
        assert problems(local)[0].startswith(f"{path}: "), at


def test_a_changed_file_of_an_older_version_is_found_by_its_name(local):
    run = local.run({"a": "v1"})
    old = file_of(run, "boxes")
    data = local.fs.cat_file(local.path(old.path))
    name = hashlib.blake2b(data, digest_size=4).hexdigest()
    renamed = replace(old, path=f"{old.path[:-16]}{name}.parquet", digest=None)
    local.fs.mv(local.path(old.path), local.path(renamed.path))
    save(local, run.model_copy(update={"files": tuple(renamed if file == old else file for file in run.files)}))
    (record,) = load_commits(local.fs, local.root, run.run_id)
    files = tuple(renamed if file == old else file for file in record.files)
    path = local.path(LakePaths(local.root).commit_path(run.run_id, record.task))
    write_record(local.fs, path, record.model_copy(update={"files": files}))
    assert problems(local) == []
    changed = bytearray(data)
    changed[100] ^= 1
    local.fs.pipe_file(local.path(renamed.path), bytes(changed))
    assert problems(local)[0].startswith(f"{renamed.path}: ")


def test_a_file_with_other_rows_or_columns(local):
    run = local.run({"a": "v1"})
    save(local, run.model_copy(update={"files": (replace(file_of(run, "images"), rows=5),)}))
    assert any("1 rows, but 5 were committed" in line for line in problems(local))
    images = rows_of(run.run_id, {"a": "v1"})["images"]
    rewrite(local, run, "images", images.set_column(6, "width_px", images["width_px"].cast(pa.int64())))
    assert any(line.endswith("of another type: width_px") for line in problems(local))
    rewrite(local, run, "images", images.append_column("new_in_a_later_version", pa.array([1])))
    assert problems(local) == []


def test_features_of_another_type(local):
    run = local.run({"a": "v1"})
    features = rows_of(run.run_id, {"a": "v1"})["features"]
    plain = pa.array(features["feature"].to_pylist(), pa.list_(pa.float32()))
    rewrite(local, run, "features", features.set_column(2, "feature", plain))
    assert any(line.endswith("of another type: feature") for line in problems(local))


def test_a_stray_file(lake):
    lake.run({"a": "v1"})
    stray = f"boxes/model={MODEL}/date={DATE}/part-stray.parquet"
    lake.fs.pipe_file(lake.path(stray), to_parquet(rows_of("r", {"a": "v1"})["boxes"]))
    assert problems(lake) == [f"{stray}: no run committed this file; camlake did not write it, remove it by hand"]


def test_a_file_in_another_runs_place(local):
    first = local.run({"a": "v1"})
    second = local.run({"b": "v1"})
    save(local, second.model_copy(update={"files": (*second.files, file_of(first, "boxes"))}))
    found = problems(local)
    assert f"{file_of(first, 'boxes').path}: committed 2 times" in found
    assert f"{file_of(first, 'boxes').path}: no place for table boxes of run {second.run_id}" in found


def test_a_planned_input_without_an_ending(lake):
    run = lake.run({"a": "v1"})
    lake.write_plan(run.run_id, {"a": "v1", "lost\nline": "v1"})
    found = problems(lake)
    assert found[0] == (
        f"run {run.run_id}: 1 planned inputs are neither in images nor in quarantine, such as 'lost\\nline'"
    )
    assert found[1] == f"run {run.run_id}: 2 rows planned, but its manifest says 1"


def test_a_row_that_nobody_planned(local):
    run = local.run({"a": "v1", "b": "v1"})
    local.write_plan(run.run_id, {"a": "v1"})
    assert any("1 rows of images and quarantine are of no planned input, such as 'b'" in one for one in problems(local))


def test_an_input_planned_twice(local):
    run = local.run({"a": "v1"})
    plan = local.path(f"{LakePaths(local.root).plan_dir(run.run_id)}/00000.parquet")
    local.fs.cp_file(plan, plan.replace("00000", "00001"))
    assert f"run {run.run_id}: 1 inputs are planned more than once, such as 'a'" in problems(local)


def test_an_image_twice_in_one_run(local):
    run = local.run({"a": "v1", "b": "v1"})
    images = rows_of(run.run_id, {"a": "v1", "b": "v1"})["images"]
    rewrite(local, run, "images", pa.concat_tables([images, images.slice(0, 1)]))
    found = problems(local)
    assert f"run {run.run_id}: 1 images stand more than once in images and quarantine, such as 'a'" in found
    assert f"run {run.run_id}: 3 rows annotated, but its manifest says 2" in found


def test_an_image_in_both_tables(local):
    run = local.run({"a": "v1"}, {"b": Reason.EMPTY})
    rewrite(local, run, "quarantine", rows_of(run.run_id, {}, {"a": Reason.EMPTY})["quarantine"])
    found = problems(local)
    assert f"run {run.run_id}: 1 images stand more than once in images and quarantine, such as 'a'" in found
    assert any("1 planned inputs are neither" in line for line in found)


def test_a_version_that_was_annotated_again(lake):
    lake.run({"a": "v1", "b": "v1"})
    again = lake.run({"a": "v1"}, {"b": Reason.EMPTY})
    expected = f"run {again.run_id}: 2 images that were annotated before were worked on again, such as 'a'"
    assert problems(lake) == [expected]


def test_a_version_that_came_back_is_no_problem(local):
    local.run({"a": "v1"}, {"b": Reason.FETCH_FAILED})
    local.run({"a": "v2"}, {"b": Reason.FETCH_FAILED})
    local.run({"a": "v1", "b": "v1"})
    assert problems(local) == []


@pytest.mark.parametrize("table", ["boxes", "heatmaps", "features"])
def test_rows_without_their_image(local, table):
    run = local.run({"a": "v1"})
    rewrite(local, run, table, rows_of(run.run_id, {"a": "v1", "z": "v1"})[table])
    assert any(f" rows of {table} are of no annotated image" in line for line in problems(local))


def test_images_without_their_rows(local):
    run = local.run({"a": "v1", "b": "v1"})
    only_a = rows_of(run.run_id, {"a": "v1"})
    for table in ("boxes", "heatmaps", "features"):
        run = rewrite(local, run, table, only_a[table])
    found = problems(local)
    assert f"run {run.run_id}: 1 images don't have n_boxes boxes, such as 'b'" in found
    assert f"run {run.run_id}: 1 images don't have a heatmap, such as 'b'" in found
    assert f"run {run.run_id}: 1 images don't have one feature vector, such as 'b'" in found


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"planned": 3}, "3 images planned, but 2 annotated or rejected"),
        ({"listed": 9}, "already done, planned and left out don't add up to 9 listed"),
        ({"rejected_by_reason": {}}, "0 rejections by reason, but 1 rejected"),
        ({"annotated": 7, "planned": 8, "listed": 8}, "1 rows annotated, but its manifest says 7"),
        ({"boxes": 5}, "2 rows boxes, but its manifest says 5"),
    ],
)
def test_counts_that_do_not_agree(local, counts, said):
    run = local.run({"a": "v1"}, {"b": Reason.EMPTY})
    save(local, run.model_copy(update={"counts": run.counts.model_copy(update=counts)}))
    assert f"run {run.run_id}: {said}" in problems(local)
