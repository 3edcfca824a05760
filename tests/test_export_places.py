"""Where an export reads pictures and where it writes: shards, stores, links, lost pictures, half-written folders."""

import csv
import json
import os
import tarfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.images.mask_decoding import run_length_mask
from pipeline.models.localize.box_rules import BoxRule, boxes_in_pixels, cut_maps
from pipeline.models.localize.foreground import Foreground, ForegroundCard, foreground_bytes
from pipeline.outputs.export import selection
from pipeline.outputs.export.destination import begin
from pipeline.outputs.export.formats import csv as csv_format
from pipeline.outputs.export.masks import _component
from schemas.errors import RejectedShareError, StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.options.rebox import ReboxConfig
from tests.export_lake import HEAT, Told, export, make_lake, write_pictures
from tests.fake_lake import MODEL, FakeLake

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


def test_a_mask_is_the_map_where_it_reaches_the_threshold(lake, tmp_path):
    export(lake, tmp_path / "out", "coco")
    document = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    heat = (np.array(HEAT["heat"], np.float32) / 255 * 2 - 1).reshape(2, 3)
    expected = cv2.resize(heat, (W, H), interpolation=cv2.INTER_LINEAR) >= 0.5
    for one in document["annotations"]:
        mask = run_length_mask(one["segmentation"]["counts"], one["segmentation"]["size"])
        np.testing.assert_array_equal(mask, expected)
        assert one["area"] == expected.sum()
        assert np.abs(coco_mask.toBbox(one["segmentation"]) - one["bbox"]).max() <= 1
    export(lake, tmp_path / "without", "coco", masks=False)
    document = json.loads((tmp_path / "without/annotations/instances_train.json").read_text())
    assert {(str(one["segmentation"]), one["area"] > 0) for one in document["annotations"]} == {("[]", True)}


def test_each_component_has_its_own_mask(tmp_path):
    """Of the map 1 0 0 0.9 the two ends, and a box without a pixel's centre, which has none."""
    write_pictures(tmp_path / "in", {"a.jpg": (W, H)})
    heat = {"heat_h": 1, "heat_w": 4, "heat_min": 0.0, "heat_max": 1.0, "heat": [255, 0, 0, 230]}
    boxes = [
        Told(20, (0, 0, 16, H)),
        Told(20, (48 + 16 / 9 * 0.4, 0, W, H), component=1),
        Told(20, (30.1, 20.1, 30.2, 20.2), component=2),
    ]
    lake = make_lake(tmp_path / "labels", [tmp_path / "in"], (W, H), {"a.jpg": boxes}, heat=heat)
    export(lake, tmp_path / "out", "coco")
    document = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    first, second, third = (one["segmentation"] for one in document["annotations"])
    np.testing.assert_array_equal(coco_mask.toBbox(first), [0, 0, 16, H])
    np.testing.assert_allclose(coco_mask.toBbox(second), [49, 0, 15, H], atol=1)
    assert third == []


@settings(deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)))
def test_the_component_is_the_one_that_reaches_furthest(crop):
    assume(crop.any())
    _, labels, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=8)
    reach = [(int(width) * int(height), int(area), at) for at, (_, _, width, height, area) in enumerate(stats) if at]
    np.testing.assert_array_equal(_component(crop), labels == max(reach)[2])


def test_masks_of_fused_maps_fit_the_boxes_that_were_cut_from_them(tmp_path):
    write_pictures(tmp_path / "in", {"a.jpg": (W, H)})
    card = ForegroundCard("tiny", "0" * 64, "x", (3, 3))
    foreground = Foreground(card, torch.zeros(2), torch.ones(2))
    figure = {"fg_h": 3, "fg_w": 3, "fg_min": -1.0, "fg_max": 2.0, "fg": [0, 90, 30, 60, 255, 80, 10, 50, 40]}
    ground = np.array(figure["fg"], np.float32).reshape(1, 3, 3) / 255 * 3 - 1
    heat = (np.array(HEAT["heat"], np.float32) / 255 * 2 - 1).reshape(1, 1, 2, 3)
    fused = foreground.fused(torch.from_numpy(heat), torch.from_numpy(ground))[:, 0].numpy()
    rule = BoxRule("auto", (0.6,), 0.0)
    cut = cut_maps(rule, fused, np.array([0]), np.array([0]), np.array([[H, W]]))
    box = boxes_in_pixels(rule, [cut]).xyxy[0].tolist()
    lake = make_lake(
        tmp_path / "labels",
        [tmp_path / "in"],
        (W, H),
        {"": [Told(20, tuple(box), threshold=0.6)]},
        figure=figure,
        settings={"box_rule": "auto", "foreground": foreground.digest},
    )
    with pytest.raises(StoreError, match="the figure/ground direction of the maps is lost or changed; --no-masks"):
        export(lake, tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()
    place = tmp_path / f"labels/_foreground/model={MODEL}.safetensors"
    place.parent.mkdir()
    place.write_bytes(foreground_bytes(foreground))
    export(lake, tmp_path / "out", "coco")
    (found,) = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())["annotations"]
    assert np.abs(coco_mask.toBbox(found["segmentation"]) - found["bbox"]).max() <= 1
    assert 0 < found["bbox"][2] < W


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


@pytest.fixture
def dest(request, tmp_path):
    return str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out"


@pytest.mark.parametrize("dest", ["local", "memory"], indirect=True)
def test_a_half_written_export_never_looks_whole(lake, dest, monkeypatch, capsys):
    def stop(self):
        raise _StopsError

    with monkeypatch.context() as patch:
        patch.setattr(csv_format.CsvWriter, "close", stop)
        with pytest.raises(_StopsError):
            export(lake, dest, "csv", images="copy")
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


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "images/../../escaped"])
def test_no_name_places_a_file_outside(tmp_path, name):
    dest = begin(str(tmp_path / "out"), StorageConfig(), False, print)
    for put in (dest.open, lambda name: dest.write(name, b""), lambda name: dest.link(name, "x")):
        with pytest.raises(StoreError, match="leaves the output"):
            put(name)
    assert list(tmp_path.iterdir()) == []


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
