"""Images that the input no longer has: kept and counted, or hidden until the input has them again."""

import json
from pathlib import Path

import duckdb
import pytest

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs.reader import CURRENT_ROWS_SQL, open_lake
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.integrity.repair import repair
from pipeline.storage.lake.integrity.verify import compare_input, verify
from pipeline.storage.lake.plan import tombstones
from tests.deleted import LOCAL, Output, fill, gone
from tests.jobs_on import run_annotate, run_command


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(tmp_path / "out")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder of four files; their content does not matter here."""
    return fill(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg", "sub/d.jpg")


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
    (file,) = Path(output.out).glob("quarantine/**/part-*.parquet")
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
    assert len(list(Path(output.out).glob("quarantine/**/part-*.parquet"))) == 2
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


def test_annotate_hides_and_shows_again(tmp_path, capsys):
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
