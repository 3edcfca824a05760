"""Which images count as gone from the input: by the scope of what was listed."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.outputs.reader import open_lake
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.plan.planning import make_plan
from pipeline.storage.lake.plan.tombstones import images_in_scope
from schemas.input_options import InputOptions
from tests.deleted import LOCAL, Output, fill, gone
from tests.fake_lake import MODEL


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(tmp_path / "out")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder of four files; their content does not matter here."""
    return fill(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg", "sub/d.jpg")


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
