"""Each format, opened by its own library: boxes within 1/1000 pixel, classes and scores are those of the output.

The libraries of ``tests.export_readers`` bring an OpenCV of their own, so they have an environment of their own, which
``.ci/run`` makes: fiftyone, supervision, datumaro and label-studio-sdk. EXPORT_READERS_PYTHON names its Python.
"""

import csv
import gc
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from pycocotools.coco import COCO

from pipeline.outputs import reader as camlake
from pipeline.outputs.export.export_formats import format_names
from pipeline.outputs.export.formats.cvat import task_name
from pipeline.outputs.export.writer import load_format
from tests.export_lake import HOSTILE, Told, export, make_lake, write_pictures
from tests.fake_lake import MODEL

W, H = 64, 48
PICTURES = ("a.jpg", "deep/it's [1] #2.jpg", "ü 日本.png", "none.jpg")
BOXES = {
    "a.jpg": [
        Told(3, (1.1, 2.7, 33.3, 26.9), 0.9, 0.8),
        Told(7, (0.0, 0.0, 64.0, 48.0), 0.1, 0.05, rank=1),
        Told(8, (60.123, 40.456, 63.999, 47.001), 0.333, 0.04, rank=2),
    ],
    "#2.jpg": [Told(8, (10.01, 11.02, 12.03, 13.04), 0.7)],
    "日本.png": [Told(20, (1 / 3, 1 / 7, 50 / 3, 40 / 7), 0.123456789)],
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    write_pictures(folder / "images", dict.fromkeys(PICTURES, (W, H)))
    return make_lake(folder / "labels", [folder / "images"], (W, H), BOXES)


@pytest.fixture(scope="module")
def rows(lake):
    """For each image_id its uri and its boxes: name, four sides, score."""
    query = "SELECT image_id, images.uri, label, xmin, ymin, xmax, ymax, box_score FROM images LEFT JOIN boxes"
    with camlake.open(lake.out) as opened:
        found = opened.sql(f"{query} USING (image_id) ORDER BY rank").fetchall()
    images = {}
    for image_id, uri, label, *rest in found:
        boxes = images.setdefault(image_id, (uri, []))[1]
        boxes += [(label, rest[:4], rest[4])] if label is not None else []
    return images


def same(found, rows, *, scores=True, background=False, atol=1e-3):
    """``found`` has for each image_id the list of (name, four sides, score)."""
    expected = {key: boxes for key, (_, boxes) in rows.items() if boxes or background}
    assert set(found) == set(expected)
    for key, boxes in expected.items():
        assert [box[0] for box in found[key]] == [box[0] for box in boxes]
        for (_, sides, score), (_, true_sides, true_score) in zip(found[key], boxes, strict=True):
            np.testing.assert_allclose(sides, true_sides, rtol=0, atol=atol)
            assert not scores or np.float32(score) == np.float32(true_score)


def picture_of(rows, image_id):
    return Path(rows[image_id][0]).read_bytes()


def test_every_format_is_tested_here():
    assert format_names() == ["coco", "csv", "cvat", "hf", "labelstudio", "voc", "webdataset", "yolo"]
    assert all(load_format(name).images for name in format_names())


def test_coco_by_pycocotools(lake, rows, tmp_path, capsys):
    export(lake, tmp_path / "coco", "coco", images="copy", background=True)
    coco = COCO(str(tmp_path / "coco/annotations/instances_train.json"))
    assert [(one["id"], one["name"]) for one in coco.loadCats(coco.getCatIds())] == [
        (class_id + 1, label) for class_id, label in sorted(HOSTILE.items())
    ]
    found = {}
    for image in coco.imgs.values():
        assert (image["width"], image["height"], image["coco_url"]) == (W, H, rows[image["camlake_image_id"]][0])
        own = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        boxes = [np.array(one["bbox"]) for one in own]
        corners = [[*box[:2], *(box[:2] + box[2:])] for box in boxes]
        names = [coco.cats[one["category_id"]]["name"] for one in own]
        scores = [one["score"] for one in own]
        found[image["camlake_image_id"]] = list(zip(names, corners, scores, strict=True))
        assert (tmp_path / "coco/images/train" / image["file_name"]).read_bytes() == picture_of(
            rows, image["camlake_image_id"]
        )
    same(found, rows, background=True)
    assert {"info", "licenses"} <= set(coco.dataset)


def yolo_boxes(folder, split):
    """Read as Ultralytics does: the label file is where /images/ of the picture's path is /labels/."""
    document = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    found = {}
    for picture in sorted((folder / document[split]).iterdir()):
        label = Path(str(picture).replace("/images/", "/labels/")).with_suffix(".txt")
        height, width = cv2.imread(str(picture)).shape[:2]
        lines = [line.split() for line in label.read_text().splitlines()]
        assert all(len(line) == 5 and int(line[0]) < document["nc"] for line in lines)
        values = np.array([list(map(float, line[1:])) for line in lines]).reshape(-1, 4)
        assert (values >= 0).all()
        assert (values <= 1).all()
        values *= [width, height, width, height]
        corners = np.concatenate([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2], axis=1)
        names = [document["names"][int(line[0])] for line in lines]
        found[picture.stem] = list(zip(names, corners, names, strict=True))
    return found


def test_yolo_by_its_rules(lake, rows, tmp_path, capsys):
    export(lake, tmp_path / "yolo", "yolo", background=True)
    same(yolo_boxes(tmp_path / "yolo", "train"), rows, scores=False, background=True)
    assert "No split is called val: val is train here" in (tmp_path / "yolo/data.yaml").read_text(encoding="utf-8")
    assert "no place for scores" in capsys.readouterr().err


def test_voc_by_its_rules(lake, rows, tmp_path):
    folder = tmp_path / "voc"
    export(lake, folder, "voc")
    listed = (folder / "ImageSets/Main/train.txt").read_text().split()
    assert sorted(listed) == sorted(path.stem for path in (folder / "Annotations").iterdir())
    found = {}
    for image_id in listed:
        tree = ElementTree.parse(folder / "Annotations" / f"{image_id}.xml").getroot()
        assert tree.findtext("path") == rows[image_id][0]
        assert (folder / "JPEGImages" / tree.findtext("filename")).read_bytes() == picture_of(rows, image_id)
        width, height = (int(tree.findtext(f"size/{side}")) for side in ("width", "height"))
        boxes = []
        for one in tree.iter("object"):
            x0, y0, x1, y1 = (float(one.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= x0 <= width
            assert 1 <= y0 <= height
            assert x1 <= width
            assert y1 <= height
            boxes.append((one.findtext("name"), (x0 - 1, y0 - 1, x1, y1), float(one.findtext("score"))))
        found[image_id] = boxes
    same(found, rows)


def test_hugging_face_by_datasets(lake, rows, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    export(lake, tmp_path / "hf", "hf", background=True)
    loaded = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"), split="train")
    categories = loaded.features["objects"]["category"].feature
    found = {}
    for row in loaded:
        objects = row["objects"]
        assert row["image"].size == (row["width"], row["height"]) == (W, H)
        boxes = np.array(objects["bbox"]).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        names = [categories.int2str(one) for one in objects["category"]]
        found[row["image_id"]] = list(zip(names, corners, objects["score"], strict=True))
    same(found, rows, background=True)
    stored = pq.read_table(tmp_path / "hf/data/train-00000.parquet", columns=["image", "image_id"]).to_pylist()
    assert all(one["image"]["bytes"] == picture_of(rows, one["image_id"]) for one in stored)


def test_label_studio(lake, rows, tmp_path):
    """The fields of Label Studio's tasks with predictions."""
    export(lake, tmp_path / "ls", "labelstudio")
    config = ElementTree.parse(tmp_path / "ls/labeling-config.xml").getroot()
    labels = [one.get("value") for one in config.iter("Label")]
    assert labels == [label for _, label in sorted(HOSTILE.items())]
    tag, image = config.find("RectangleLabels"), config.find("Image")
    found = {}
    for task in json.loads((tmp_path / "ls/tasks-train.json").read_text(encoding="utf-8")):
        (prediction,) = task["predictions"]
        assert task["data"]["image"] == rows[task["data"]["image_id"]][0]
        assert image.get("value") == "$image"
        assert prediction["model_version"] == MODEL
        assert prediction["score"] == max(one["score"] for one in prediction["result"])
        boxes = []
        for one in prediction["result"]:
            assert (one["type"], one["from_name"], one["to_name"]) == ("rectanglelabels", tag.get("name"), "image")
            value, width, height = one["value"], one["original_width"], one["original_height"]
            assert value["x"] + value["width"] <= 100 + 1e-9
            x, y = value["x"] * width / 100, value["y"] * height / 100
            sides = (x, y, x + value["width"] * width / 100, y + value["height"] * height / 100)
            boxes.append((value["rectanglelabels"][0], sides, one["score"]))
        assert len({one["id"] for one in prediction["result"]}) == len(boxes)
        found[task["data"]["image_id"]] = boxes
    same(found, rows)


def test_cvat(lake, rows, tmp_path):
    export(lake, tmp_path / "cvat", "cvat")
    tree = ElementTree.parse(tmp_path / "cvat/train/annotations.xml").getroot()
    assert tree.findtext("version") == "1.1"
    assert [one.findtext("name") for one in tree.iter("label")] == [label for _, label in sorted(HOSTILE.items())]
    by_name = {uri.lstrip("/"): image_id for image_id, (uri, _) in rows.items()}
    found = {}
    for number, image in enumerate(tree.findall("image")):
        assert (image.get("id"), image.get("width"), image.get("height")) == (str(number), str(W), str(H))
        found[by_name[image.get("name")]] = [
            (
                one.get("label"),
                [float(one.get(side)) for side in ("xtl", "ytl", "xbr", "ybr")],
                float(one.findtext("attribute[@name='score']")),
            )
            for one in image.findall("box")
        ]
    same(found, rows)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # The library leaves the shards that it read open.
def test_webdataset_by_its_library(lake, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.outputs.export.formats.webdataset.SHARD_IMAGES", 2)
    export(lake, tmp_path / "wds", "webdataset", background=True)
    shards = sorted(map(str, (tmp_path / "wds").glob("*.tar")))
    members = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            members.append(tar.getnames())
    assert list(map(len, members)) == [4, 4]
    found = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
        document = sample["json"]
        picture = sample.get("jpg", sample.get("png"))
        assert document["image_id"] == sample["__key__"]
        assert picture is not None
        found[sample["__key__"]] = [(one["label"], one["bbox_xyxy"], one["score"]) for one in document["boxes"]]
    gc.collect()
    same(found, rows, background=True)
    with tarfile.open(shards[0]) as tar:
        first = tar.getmembers()[0]
        assert tar.extractfile(first).read() == picture_of(rows, first.name.split(".")[0])


def test_csv(lake, rows, tmp_path):
    export(lake, tmp_path / "csv", "csv", background=True)
    text = (tmp_path / "csv/boxes-train.csv").read_bytes().decode()
    found = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        assert row["uri"] == rows[row["image_id"]][0]
        boxes = found.setdefault(row["image_id"], [])
        if row["label"]:
            sides = [float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append((row["label"], sides, float(row["box_score"])))
            assert float(row["threshold"]) == 0.5
            assert row["method"] == "cam"
    same(found, rows, background=True)


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("s3://bucket/photos/a.jpg", "s3://bucket/photos/", "photos/a.jpg"),
        ("/data/photos/cats/a.jpg", "/data/photos", "cats/a.jpg"),
        ("/data/photos/a.jpg", "/data/photo", "data/photos/a.jpg"),
        ("/data/a.jpg", "/data/a.jpg", "data/a.jpg"),
    ],
)
def test_a_task_of_cvat_finds_its_pictures(uri, folder, name):
    assert task_name(uri, folder) == name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "to", "images"),
    [
        ("fiftyone_coco", "coco", "copy"),
        ("supervision_coco", "coco", "copy"),
        ("supervision_yolo", "yolo", "copy"),
        ("supervision_voc", "voc", "copy"),
        ("datumaro_cvat", "cvat", "copy"),
        ("label_studio", "labelstudio", None),
    ],
)
def test_the_library_of_the_tool_reads_it(lake, rows, tmp_path, reader, to, images):
    if not (python := os.environ.get("EXPORT_READERS_PYTHON")):
        pytest.skip("no supervision, Datumaro, Label Studio SDK: EXPORT_READERS_PYTHON names no Python that has them")
    if reader == "fiftyone_coco" and subprocess.run([python, "-c", "import fiftyone"], check=False).returncode:
        pytest.skip("no FiftyOne")
    export(lake, tmp_path / "out", to, **({"images": images} if images else {}))
    words = [python, Path(__file__).with_name("export_readers.py"), reader, tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert not done.returncode, done.stderr
    read = json.loads(done.stdout.splitlines()[-1]).items()
    found = {key: [(name, sides, None) for name, *sides in boxes] for key, boxes in read}
    same(found, rows, scores=False, atol=0.005 if reader == "datumaro_cvat" else 1e-3)  # Datumaro has two decimals.
