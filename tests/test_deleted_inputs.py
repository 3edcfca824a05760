"""Images that the input no longer has: kept and counted, or hidden until the input has them again."""

import io
import json
import os
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs.reader import CURRENT_ROWS_SQL, open_lake
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake import tombstones
from pipeline.storage.lake.commit import done_images
from pipeline.storage.lake.integrity.repair import repair
from pipeline.storage.lake.integrity.verify import compare_input, verify
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.planning import make_plan, read_plan_slice
from pipeline.storage.lake.run import RunRequest, open_run
from pipeline.storage.lake.tombstones import commit_tombstones, images_in_scope
from schemas.options.config import StorageConfig
from schemas.options.input_options import AS_IT_IS, InputOptions
from schemas.runs import Counts
from tests.fake_lake import MODEL, SETTINGS, image_id, manifest_of, rows_of, schemas
from tests.jobs_on import run_annotate, run_command

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


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(tmp_path / "out")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder of four files; their content does not matter here."""
    return fill(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg", "sub/d.jpg")


def fill(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def gone(path: Path) -> Path:
    """Move a file away and return where it is, with its time."""
    (outside,) = (parent.parent for parent in path.parents if parent.name == "in")
    return path.rename(outside / f"away-{path.name}")


# -- keep and hide -----------------------------------------------------------------------------------------------------


def test_keep_says_how_many_and_changes_nothing(output, folder):
    output.run(folder)
    gone(folder / "a.jpg")
    counts = output.run(folder)
    assert (counts.missing, counts.hidden, counts.planned, counts.rejected) == (1, 0, 0, 0)
    assert counts.deleted_sentence == "1 annotated image is no longer in INPUT: kept (--on-deleted hide hides)"
    gone(folder / "b.jpg")
    assert output.run(folder).deleted_sentence.startswith("2 annotated images are no longer in INPUT: kept")
    assert output.shown() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    output.check()


def test_nothing_is_said_where_nothing_is_gone(output, folder):
    assert output.run(folder, "hide").deleted_sentence == ""
    assert output.run(folder, "hide").deleted_sentence == ""


def test_hide_hides_until_the_input_has_it_again(output, folder):
    output.run(folder)
    away = gone(folder / "a.jpg")
    counts = output.run(folder, "hide")
    assert (counts.missing, counts.hidden, counts.listed, counts.already_done) == (1, 1, 3, 3)
    assert counts.deleted_sentence == "1 annotated image is no longer in INPUT: now hidden"
    assert counts.refused == {}
    assert output.shown() == ["b.jpg", "c.jpg", "d.jpg"]
    output.check()
    again = output.run(folder, "hide")
    assert (again.missing, again.planned) == (0, 0)
    away.rename(folder / "a.jpg")
    back = output.run(folder)
    assert (back.restored, back.annotated, back.missing, back.already_done, back.refused) == (1, 0, 0, 3, {})
    assert back.deleted_sentence == "1 hidden before, now in INPUT again: shown"
    assert output.shown() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    output.check()
    assert output.run(folder, "hide").planned == 0


def test_no_version_stands_twice_in_the_files(output, folder):
    """What a plain glob sees is the same after an image went and came three times, and every time is honoured."""
    output.run(folder)
    for _ in range(3):
        away = gone(folder / "a.jpg")
        output.run(folder, "hide")
        assert "a.jpg" not in output.shown()
        away.rename(folder / "a.jpg")
        output.run(folder, "hide")
        assert "a.jpg" in output.shown()
    assert duckdb.sql(f"SELECT count(*) FROM '{output.out}/images/**/*.parquet'").fetchall() == [(4,)]
    output.check()


def test_a_changed_image_that_comes_back_is_annotated_anew(output, folder):
    output.run(folder)
    gone(folder / "a.jpg")
    output.run(folder, "hide")
    fill(folder, "a.jpg", content=b"another")
    counts = output.run(folder)
    assert (counts.restored, counts.annotated) == (0, 1)
    assert output.shown() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    output.check()


def test_a_renamed_image_is_a_new_one_and_the_old_one_is_gone(output, folder):
    output.run(folder)
    (folder / "a.jpg").rename(folder / "e.jpg")
    counts = output.run(folder, "hide")
    assert (counts.annotated, counts.hidden) == (1, 1)
    assert output.shown() == ["b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    output.check()


def test_keep_does_not_show_what_was_hidden(output, folder):
    output.run(folder)
    gone(folder / "a.jpg")
    output.run(folder, "hide")
    assert output.run(folder).missing == 0
    assert output.shown() == ["b.jpg", "c.jpg", "d.jpg"]


def test_the_current_rows_of_any_engine_hide_it(output, folder):
    output.run(folder)
    away = gone(folder / "a.jpg")
    output.run(folder, "hide")
    tables = {table: f"'{output.out}/{table}/**/*.parquet'" for table in ("images", "quarantine")}

    def current() -> list[str]:
        boxes = f"'{output.out}/boxes/**/*.parquet'"
        rows = duckdb.sql(CURRENT_ROWS_SQL.format(table=boxes, **tables)).to_arrow_table()["uri"].to_pylist()
        return sorted({Path(uri).name for uri in rows})

    assert current() == ["b.jpg", "c.jpg", "d.jpg"]
    away.rename(folder / "a.jpg")
    output.run(folder)
    assert current() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


# -- what counts as gone -----------------------------------------------------------------------------------------------


def test_only_a_whole_listing_can_tell(output, folder):
    output.run(folder)
    gone(folder / "a.jpg")
    assert output.run(folder, "hide", limit=2).missing == 0
    assert output.run(folder, "hide", sample=0.5).missing == 0
    assert output.shown() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_a_limit_shows_again_only_what_it_considers(output, folder):
    output.run(folder)
    away = gone(folder / "sub/d.jpg")
    output.run(folder, "hide")
    (folder / "sub").mkdir(exist_ok=True)
    away.rename(folder / "sub/d.jpg")
    assert output.run(folder, limit=3).restored == 0
    assert output.run(folder, limit=4).restored == 1
    output.check()


def test_other_folders_and_their_namesakes_are_left_alone(output, folder, tmp_path):
    output.run(folder)
    output.run(fill(tmp_path / "in2", "x.jpg"))
    counts = output.run(folder / "sub", "hide")
    assert counts.missing == 0
    gone(folder / "sub/d.jpg")
    fill(folder, "sub/e.jpg")
    assert output.run(folder / "sub", "hide").hidden == 1
    assert output.shown() == ["a.jpg", "b.jpg", "c.jpg", "e.jpg", "x.jpg"]
    output.check()


def test_a_glob_tells_only_of_what_it_annotated(output, folder):
    output.run(folder / "*.jpg")
    fill(folder, "p.png", "q.png")
    assert output.run(folder / "*.png", "hide").missing == 0
    gone(folder / "a.jpg")
    gone(folder / "p.png")
    assert output.run(folder / "*.jpg", "hide").hidden == 1
    assert output.shown() == ["b.jpg", "c.jpg", "p.png", "q.png"]
    output.check()


def test_a_manifest_tells_of_its_own_rows(output, folder, tmp_path):
    manifest = tmp_path / "m.csv"
    lines = [str(folder / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    manifest.write_text("\n".join(["uri", *lines]))
    output.run(folder / "sub")
    output.run(manifest)
    manifest.write_text("\n".join(["uri", *lines[1:]]))
    assert output.run(manifest, "hide").hidden == 1
    assert output.shown() == ["b.jpg", "c.jpg", "d.jpg"]
    output.check()


def test_another_model_keeps_its_rows(output, folder):
    output.run(folder)
    output.run(folder, model="other-00000000")
    gone(folder / "a.jpg")
    assert output.run(folder, "hide").hidden == 1
    with open_lake(output.out, LOCAL) as lake:
        counts = {model: len(lake.arrow("images", model=model)) for model in lake.models}
    assert counts == {MODEL: 3, "other-00000000": 4}
    assert output.run(folder, model="other-00000000").missing == 1


def write_shard(path: Path, *names: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))


def test_members_of_shards(output, tmp_path):
    folder = tmp_path / "in"
    write_shard(folder / "0.tar", "a.jpg", "b.jpg")
    write_shard(folder / "1.tar", "c.jpg")
    output.run(folder)
    write_shard(folder / "0.tar", "a.jpg")
    assert output.run(folder, "hide").hidden == 1
    assert output.shown() == ["0.tar#a.jpg", "1.tar#c.jpg"]
    (folder / "1.tar").unlink()
    assert output.run(folder, "hide").hidden == 1
    assert output.shown() == ["0.tar#a.jpg"]
    output.check()


def test_members_of_a_damaged_shard_are_not_gone(output, tmp_path):
    folder = tmp_path / "in"
    write_shard(folder / "0.tar", "a.jpg")
    write_shard(folder / "1.tar", "b.jpg")
    output.run(folder)
    (folder / "1.tar").write_bytes(b"no tar at all" * 100)
    listing = list_inputs(str(folder), LOCAL, out=output.out)
    scoped = images_in_scope(output.fs, output.root, MODEL, str(folder), listing.scope, in_containers=True)
    plan = make_plan(listing, [], output.fs, output.root, "_runs/x/plan", rows_per_slice=9, in_output=scoped)
    assert plan.counts.missing == 0


def test_a_folder_that_is_read_as_another_kind_loses_nothing(output, folder):
    fill(folder, "e.jpg", "f.jpg")
    pq.write_table(pa.table({"image": [b"x", b"y"]}), folder / "t.parquet")
    output.run(folder, how=InputOptions(kind="images"))
    counts = output.run(folder, "hide", how=InputOptions(kind="parquet"))
    assert (counts.missing, counts.annotated) == (0, 2)


def test_images_with_ids_of_the_user_may_move(output, tmp_path):
    manifest = tmp_path / "m.csv"
    fill(tmp_path, "old/a.jpg", "new/a.jpg")
    os.utime(tmp_path / "old/a.jpg", (1, 1))
    os.utime(tmp_path / "new/a.jpg", (1, 1))
    for place in ("old", "new"):
        manifest.write_text(f"uri,key\n{tmp_path}/{place}/a.jpg,7\n")
        counts = output.run(manifest, "hide", how=InputOptions(id_column="key"))
        assert counts.missing == 0


# -- runs that die, damage, stores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_at", ["begin", "tombstones"])
@pytest.mark.parametrize("then", ["keep", "hide"])
def test_a_run_that_dies_leaves_a_sound_output(output, folder, dies_at, then):
    output.run(folder)
    gone(folder / "a.jpg")
    output.run(folder, "hide", dies_at=dies_at)
    output.run(folder, then)
    hidden = dies_at == "tombstones" or then == "hide"
    assert output.shown() == (["b.jpg", "c.jpg", "d.jpg"] if hidden else ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    output.check()


def test_a_lost_tombstone_is_found_and_repaired(output, folder):
    output.run(folder)
    gone(folder / "a.jpg")
    output.run(folder, "hide")
    (file,) = Path(output.out).glob("quarantine/**/*.parquet")
    file.unlink()
    assert any("committed, but gone" in problem for problem in verify(output.fs, output.root).problems)
    repair(output.fs, output.root)
    assert output.shown() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    output.run(folder, "hide")
    assert output.shown() == ["b.jpg", "c.jpg", "d.jpg"]
    output.check()


def test_a_lost_manifest_of_a_run_that_hid_is_rebuilt(output, folder):
    output.run(folder)
    gone(folder / "a.jpg")
    output.run(folder, "hide")
    manifests = sorted(Path(output.out).glob("_runs/*/manifest.json"))
    before = json.loads(manifests[-1].read_text())["counts"]
    manifests[-1].unlink()
    repair(output.fs, output.root)
    output.check()
    assert json.loads(manifests[-1].read_text())["counts"] == before


def test_verify_with_the_input_says_what_is_hidden(output, folder):
    output.run(folder)
    away = gone(folder / "a.jpg")
    assert (
        compare_input(output.fs, output.root, list_inputs(str(folder), LOCAL).batches).facts["inputs gone since"] == 1
    )
    output.run(folder, "hide")
    compared = compare_input(output.fs, output.root, list_inputs(str(folder), LOCAL).batches)
    assert (compared.problems, compared.facts["inputs gone since"]) == ((), 0)
    assert verify(output.fs, output.root).facts["images hidden"] == 1
    away.rename(folder / "a.jpg")
    (problem,) = compare_input(output.fs, output.root, list_inputs(str(folder), LOCAL).batches).problems
    assert "1 inputs are hidden in the output" in problem


def test_many_are_committed_in_parts(output, folder, monkeypatch):
    monkeypatch.setattr(tombstones, "BATCH_ROWS", 2)
    output.run(folder)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        gone(folder / name)
    assert output.run(folder, "hide").hidden == 3
    assert len(list(Path(output.out).glob("quarantine/**/*.parquet"))) == 2
    assert output.shown() == ["d.jpg"]
    output.check()


def test_on_an_object_store(s3):
    bucket = s3.bucket()
    for name in ("a.jpg", "b.jpg"):
        s3.client.put_object(Bucket=bucket, Key=f"in/{name}", Body=b"x")
    output = Output(f"s3://{bucket}/out", s3.storage)
    output.run(f"s3://{bucket}/in")
    s3.client.delete_object(Bucket=bucket, Key="in/a.jpg")
    assert output.run(f"s3://{bucket}/in/", "hide").hidden == 1
    assert output.shown() == ["b.jpg"]
    s3.client.put_object(Bucket=bucket, Key="in/a.jpg", Body=b"x")
    assert output.run(f"s3://{bucket}/in").restored == 1
    assert output.shown() == ["a.jpg", "b.jpg"]
    output.check()


# -- the whole command -------------------------------------------------------------------------------------------------


def test_annotate_hides_and_shows_again(tmp_path, ray_session, capsys):
    write_corpus(tmp_path, 4, seed=3, size_hw=(64, 64), broken=0)
    photos, out = tmp_path / "images", tmp_path / "out"
    run_annotate(photos, out)
    first = sorted(path for path in photos.rglob("*") if path.is_file())[0]
    away = first.rename(tmp_path / "away")
    kept = run_annotate(photos, out)
    assert (kept.counts.missing, kept.counts.hidden) == (1, 0)
    assert "1 annotated image is no longer in INPUT: kept" in "".join(capsys.readouterr())
    hid = run_annotate(photos, out, on_deleted="hide")
    assert (hid.counts.hidden, hid.counts.rejected_by_reason) == (1, {"deleted": 1})
    with open_lake(str(out), LOCAL) as lake:
        assert len(lake.arrow("images")) == 3
    away.rename(first)
    back = run_annotate(photos, out, on_deleted="hide")
    assert (back.counts.restored, back.counts.annotated) == (1, 0)
    with open_lake(str(out), LOCAL) as lake:
        assert len(lake.arrow("images")) == 4
    assert verify(*connect(str(out), LOCAL)).problems == ()


def test_a_value_that_is_none_is_refused():
    done = run_command("annotate", "x", "--out", "y", "--on-deleted", "remove")
    assert done.returncode == 2
    assert "keep" in done.stderr
    assert "hide" in done.stderr
