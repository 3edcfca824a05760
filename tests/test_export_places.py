"""Where an export reads pictures and where it writes: shards, stores, links, lost pictures, half-written folders."""

import csv
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.outputs.export import destination, selection
from pipeline.outputs.export.destination import UNFINISHED, begin
from pipeline.outputs.export.formats import csv as csv_format
from schemas.errors import RejectedShareError, StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.options.rebox import ReboxConfig
from tests.export_lake import Told, export, make_lake, write_pictures
from tests.fake_lake import FakeLake

W, H = 64, 48
CUT = (1.25 * W / 3, (1.5 - 0.5 / 1.2) * H / 2, W, H)
"""The box of HEAT at half of its maximum; tests/test_rebox.py derives it."""
BOX = [Told(20, CUT)]


@pytest.fixture
def lake(tmp_path):
    write_pictures(tmp_path / "in", dict.fromkeys(("a.jpg", "b.png", "c.jpg"), (W, H)))
    return make_lake(tmp_path / "labels", [tmp_path / "in"], (W, H), {"a.jpg": BOX, "b.png": BOX, "c.jpg": BOX})


def written_pictures(folder):
    return sorted(path.read_bytes() for path in Path(folder).rglob("*") if path.suffix in {".jpg", ".png"})


def left_out(folder):
    with (Path(folder) / "camlake-left-out.csv").open(newline="", encoding="utf-8") as file:
        return [(Path(row["uri"]).name, row["reason_code"]) for row in csv.DictReader(file)]


def test_pictures_come_out_of_tar_shards_and_parquet_files(tmp_path):
    write_pictures(tmp_path / "raw", {f"{name}.jpg": (W, H) for name in "abcdef"})
    raw = sorted((tmp_path / "raw").iterdir())
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in raw[:3]:
            tar.add(path, path.name)
    rows = [{"image": {"bytes": path.read_bytes(), "path": path.name}} for path in raw[3:]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    inputs = [tmp_path / "shard.tar", tmp_path / "images.parquet"]
    lake = make_lake(tmp_path / "labels", inputs, (W, H), {"": BOX})
    export(lake, tmp_path / "out", "voc")
    assert written_pictures(tmp_path / "out") == sorted(path.read_bytes() for path in raw)
    with pytest.raises(RejectedShareError, match="6 of 6 pictures"):
        export(lake, tmp_path / "linked", "voc", images="link")
    assert {reason for _, reason in left_out(tmp_path / "linked")} == {"fetch_failed"}


def test_links_lead_to_the_pictures(lake, tmp_path):
    export(lake, tmp_path / "out", "yolo", images="link", split="train=.5,val=.5")
    links = [path for path in (tmp_path / "out/images").rglob("*.*") if path.is_symlink()]
    assert sorted(str(path.readlink()) for path in links) == sorted(str(path) for path in (tmp_path / "in").iterdir())


@pytest.mark.parametrize("images", ["copy", "link"])
def test_a_lost_picture_is_left_out_and_named(lake, tmp_path, images, capsys):
    (tmp_path / "in/a.jpg").unlink()
    (tmp_path / "in/b.png").write_bytes(b"changed")
    export(lake, tmp_path / "out", "coco", images=images, max_rejected=0.7)
    document = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    assert (len(document["images"]), len(document["annotations"])) == (1, 1)
    assert sorted(left_out(tmp_path / "out")) == [
        ("a.jpg", "not_found"),
        ("b.png", "changed" if images == "link" else "fetch_failed"),
    ]
    assert "2 pictures are left out, such as " in capsys.readouterr().err
    with pytest.raises(RejectedShareError, match=r"2 of 3 pictures could not be read, more than --max-rejected 0.5"):
        export(lake, tmp_path / "again", "coco", images=images, max_rejected=0.5)
    assert (tmp_path / "again/camlake-export.json").exists()


def test_pictures_that_are_stored_turned_are_said(tmp_path, capsys):
    write_pictures(tmp_path / "in", {"a.jpg": (H, W), "b.jpg": (W, H)})
    turned = Image.open(tmp_path / "in/a.jpg")
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "in/a.jpg", exif=exif)
    lake = make_lake(tmp_path / "labels", [tmp_path / "in"], (W, H), {"": BOX})
    export(lake, tmp_path / "out", "yolo")
    assert "1 pictures are stored turned: their readers must apply the EXIF orientation" in capsys.readouterr().err


def test_an_output_of_rebox_finds_its_pictures_in_the_plans_of_its_source(lake, tmp_path, capsys):
    options = {"labels": lake.out, "out": str(tmp_path / "new"), "threshold": 0.5, "box_rule": "paper"}
    rebox(ReboxConfig.resolve(options), Screen())
    export(FakeLake(str(tmp_path / "new")), tmp_path / "out", "coco", images="copy")
    assert written_pictures(tmp_path / "out") == written_pictures(tmp_path / "in")
    document = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    assert [one["segmentation"] for one in document["annotations"]] == [[], [], []]
    assert "OUT does not store the maps that its boxes were cut from: boxes get no masks" in capsys.readouterr().err


@pytest.mark.parametrize("images", ["reference", "copy"])
def test_images_are_never_divided_between_batches(tmp_path, monkeypatch, images):
    write_pictures(tmp_path / "in", {f"{number}.jpg": (8, 6) for number in range(5)})
    boxes = {f"/{n}.jpg": [Told(20, (0, 0, 8, 6), rank=rank) for rank in range(n + 1)] for n in range(5)}
    lake = make_lake(tmp_path / "labels", [tmp_path / "in"], (8, 6), boxes)
    export(lake, tmp_path / "whole", "csv", images=images)
    monkeypatch.setattr(selection, "BATCH_ROWS", 2)
    export(lake, tmp_path / "parts", "csv", images=images)
    text = (tmp_path / "whole/boxes-train.csv").read_text()
    assert len(text.splitlines()) == 1 + 15
    assert (tmp_path / "parts/boxes-train.csv").read_text() == text


class _StopsError(Exception):
    pass


def stop_at_the_end(lake, dest, monkeypatch):
    """Export with copied pictures, and fail when the boxes' file would be closed."""

    def stop(self):
        raise _StopsError

    with monkeypatch.context() as patch:
        patch.setattr(csv_format.CsvWriter, "close", stop)
        with pytest.raises(_StopsError):
            export(lake, dest, "csv", images="copy")


@pytest.fixture
def dest(request, tmp_path):
    return str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out"


@pytest.mark.parametrize("dest", ["local", "memory"], indirect=True)
def test_a_half_written_export_never_looks_whole(lake, dest, monkeypatch, capsys):
    stop_at_the_end(lake, dest, monkeypatch)
    fs, root = fsspec.url_to_fs(dest)
    assert not fs.exists(f"{root}/camlake-export.json")
    assert fs.exists(f"{root}/camlake-export-unfinished" if "memory" in dest else f"{root}.camlake-export-unfinished")
    export(lake, dest, "csv", classes="cat")
    assert "an unfinished export in " in capsys.readouterr().err
    names = ["boxes-train.csv", "camlake-export.json"]
    assert sorted(os.path.basename(path) for path in fs.find(root)) == names  # noqa: PTH119 (paths of any store)
    assert [path for path in fs.find(os.path.dirname(root)) if "unfinished" in path] == []  # noqa: PTH120
    with pytest.raises(UsageError, match="holds a whole export already; allowed: another folder, or --overwrite"):
        export(lake, dest, "csv")
    export(lake, dest, "cvat", overwrite=True)
    assert sorted(os.path.basename(path) for path in fs.find(root)) == ["annotations.xml", names[1]]  # noqa: PTH119


@pytest.mark.parametrize("dest", ["local", "memory"], indirect=True)
def test_the_same_export_keeps_the_pictures_that_it_had_copied(lake, dest, monkeypatch, tmp_path, capsys):
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}

    stop_at_the_end(lake, dest, monkeypatch)
    fs, root = fsspec.url_to_fs(dest)
    work = root if "memory" in dest else f"{root}.{UNFINISHED}"
    (half,) = [path for path in fs.find(work) if path.endswith(".png")]
    fs.pipe_file(half, fs.cat_file(half)[:20])
    fs.pipe_file(f"{work}/images/train/other.jpg", b"of another export")
    fs.pipe_file(f"{work}/camlake-export.json", b"{}")  # As after a crash right at the end.
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / "in" / name).unlink()  # So that it can't be copied again.
    export(lake, dest, "csv", images="copy")
    assert "the same export stopped in " in capsys.readouterr().err
    copied = [path for path in fs.find(root) if path.endswith((".jpg", ".png"))]
    assert sorted(map(fs.cat_file, copied)) == sorted(pictures.values())
    assert len(fs.cat_file(f"{root}/boxes-train.csv").splitlines()) == 4
    assert not fs.exists(f"{root}/{UNFINISHED}")
    assert not fs.exists(f"{root}/camlake-left-out.csv")


@pytest.mark.parametrize("dest", ["local", "memory"], indirect=True)
def test_a_crash_while_an_old_export_is_removed_is_no_dead_end(lake, dest, monkeypatch):
    fs, root = fsspec.url_to_fs(dest)

    def crash(*given, **options):
        if "memory" in dest:  # Objects are removed one by one; a local folder goes aside as a whole.
            fs.rm_file(f"{root}/camlake-export.json")
        raise _StopsError

    export(lake, dest, "cvat")
    with monkeypatch.context() as patch:
        patch.setattr(destination, "remove_many", crash)
        patch.setattr(destination.shutil, "rmtree", crash)
        with pytest.raises(_StopsError):
            export(lake, dest, "csv", overwrite=True)
    export(lake, dest, "csv", overwrite=True)
    assert sorted(os.path.basename(path) for path in fs.find(root)) == ["boxes-train.csv", "camlake-export.json"]  # noqa: PTH119
    assert [path for path in fs.find(os.path.dirname(root)) if "unfinished" in path] == []  # noqa: PTH120


@pytest.mark.parametrize("dest", ["local", "memory"], indirect=True)
def test_a_folder_with_anything_else_is_refused_and_stays(lake, dest):
    fs, root = fsspec.url_to_fs(dest)
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/mine.txt", b"mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"allowed: a new or empty folder; this one holds mine\.txt"):
            export(lake, dest, "csv", overwrite=overwrite)
    assert fs.cat_file(f"{root}/mine.txt") == b"mine"
    with pytest.raises(UsageError, match="allowed: a new or empty folder"):
        export(lake, lake.out, "csv", overwrite=True)


def test_of_two_exports_into_one_folder_the_later_one_finishes(tmp_path):
    first = begin(str(tmp_path / "out"), StorageConfig(), False, print, {"same": 1}, keep=True)
    first.write("a.jpg", b"whole")
    late = first.open("boxes.csv")
    second = begin(str(tmp_path / "out"), StorageConfig(), False, print, {"same": 1}, keep=True)
    assert second.keep_left({"a.jpg": 5, "boxes.csv": 0}) == {"a.jpg", "boxes.csv"}
    with second.open("boxes.csv") as file:
        file.write(b"of the second")
    late.write(b"of the first, and longer")
    late.close()
    with pytest.raises(StoreError, match="another export has begun there and goes on; this one ends"):
        first.finish({})
    second.finish({})
    assert (tmp_path / "out/boxes.csv").read_bytes() == b"of the second"
    assert (tmp_path / "out/a.jpg").read_bytes() == b"whole"


def test_files_that_come_while_an_export_works_stay(tmp_path):
    dest = begin(str(tmp_path / "out"), StorageConfig(), False, print, {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"got files of others meanwhile, such as mine\.txt; move them"):
        dest.finish({})
    assert (tmp_path / "out/mine.txt").read_text() == "mine"


def test_a_crash_between_two_renames_loses_nothing(lake, tmp_path):
    out, new = tmp_path / "out", tmp_path / f"out.{UNFINISHED}"
    export(lake, out, "csv")
    out.rename(f"{new}-replaced")
    with pytest.raises(UsageError, match="holds a whole export already"):
        export(lake, out, "cvat")
    assert (out / "boxes-train.csv").exists()
    out.rename(f"{new}-replaced")
    export(lake, tmp_path / "other", "cvat")
    (tmp_path / "other").rename(new)
    with pytest.raises(UsageError, match="holds a whole export already"):
        export(lake, out, "csv")
    assert (out / "train/annotations.xml").exists()
    export(lake, out, "csv", overwrite=True)
    assert [path for path in tmp_path.iterdir() if UNFINISHED in path.name] == []


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "images/../../escaped"])
def test_no_name_places_a_file_outside(tmp_path, name):
    dest = begin(str(tmp_path / "out"), StorageConfig(), False, print, {})
    for put in (dest.open, lambda name: dest.write(name, b""), lambda name: dest.link(name, "x")):
        with pytest.raises(StoreError, match="leaves the output"):
            put(name)
    assert [path.name for path in tmp_path.rglob("*")] == [f"out.{UNFINISHED}", UNFINISHED]


def test_s3(s3, tmp_path):
    write_pictures(tmp_path / "in", {"a.jpg": (W, H)})
    lake = make_lake(tmp_path / "labels", [tmp_path / "in"], (W, H), {"": BOX})
    lake.storage = s3.storage
    bucket = s3.bucket()
    for folder, to in (("webdataset", "webdataset"), ("deep/yolo", "yolo"), ("hf", "hf")):
        export(lake, f"s3://{bucket}/{folder}", to)
    (image_id,) = {Path(key).stem for key in s3.keys(bucket, "deep/yolo/labels")}
    assert s3.keys(bucket) == [
        "deep/yolo/camlake-export.json",
        "deep/yolo/data.yaml",
        f"deep/yolo/images/train/{image_id}.jpg",
        f"deep/yolo/labels/train/{image_id}.txt",
        "hf/README.md",
        "hf/camlake-export.json",
        "hf/data/train-00000.parquet",
        "webdataset/camlake-export.json",
        "webdataset/train-000000.tar",
    ]
