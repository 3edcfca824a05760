"""Truths of COCO and VOC: what can not be used is skipped and named; files are hidden as everywhere."""

import json
import re
from pathlib import Path

import pytest

from pipeline.storage.truth.coco import skipped_sentence
from pipeline.storage.truth.image_classes import read_classes
from pipeline.storage.truth.labelled_images import read_labelled
from pipeline.storage.truth.masks import read_masks
from pipeline.storage.truth.truth import read_truth
from schemas.errors import UsageError
from tests.listings import LOCAL, write

# -- COCO --------------------------------------------------------------------------------------------------------------

LABELS = ["cat", "dog", "crane"]
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"


def coco(*annotations: dict, images=None, categories=None) -> dict:
    return {
        "images": images or [{"id": 7, "file_name": "a.jpg"}],
        "categories": categories or [{"id": 2, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5, 5]}, *annotations],
    }


GOOD = {"id": 9, "image_id": 7, "category_id": 2, "bbox": [2, 2, 3, 3]}
SKIPPED = [
    ("no such image", {**GOOD, "image_id": 8}, "annotation 9: no image has the id 8"),
    ("no such category", {**GOOD, "category_id": 3}, "annotation 9: no category has the id 3"),
    ("no bbox", {name: value for name, value in GOOD.items() if name != "bbox"}, "annotation 9: no bbox"),
    ("null", {**GOOD, "bbox": None}, "annotation 9: no bbox"),
    ("empty list", {**GOOD, "bbox": []}, r"annotation 9: bbox \[\]"),
    ("three numbers", {**GOOD, "bbox": [1, 2, 3]}, r"annotation 9: bbox \[1, 2, 3\]"),
    ("texts", {**GOOD, "bbox": ["a", "b", "c", "d"]}, "annotation 9: bbox"),
    ("no width", {**GOOD, "bbox": [1, 2, 0, 5]}, r"annotation 9: bbox \[1, 2, 0, 5\] is empty"),
    ("all zero", {**GOOD, "bbox": [0, 0, 0, 0]}, "annotation 9: bbox .* is empty"),
    ("not a number", {**GOOD, "bbox": [float("nan"), 0, 1, 1]}, "annotation 9: bbox .* is empty"),
    ("without an id", {"image_id": 8, "category_id": 2, "bbox": [1, 1, 1, 1]}, "annotation at place 1: no image"),
    ("an id that is a text", {**GOOD, "id": "x9", "image_id": "8"}, "annotation x9: no image has the id '8'"),
]


@pytest.mark.parametrize(("name", "annotation", "said"), SKIPPED, ids=[case[0] for case in SKIPPED])
def test_an_annotation_that_cant_be_used_is_skipped_and_named(tmp_path, name, annotation, said):
    (tmp_path / "c.json").write_text(json.dumps(coco(annotation)))
    truth = read_truth(str(tmp_path / "c.json"), LOCAL)
    assert truth.boxes_xyxy.tolist() == [[1, 1, 6, 6]]
    (skipped,) = truth.skipped
    assert re.match(said, skipped)
    named: list[str] = []
    classes = read_classes(str(tmp_path / "c.json"), LOCAL, LABELS, skipped=named)
    assert classes.to_pydict() == {"key": ["a.jpg"], "class_ids": [[1]]}
    assert named == [skipped], "annotate --classes names what evaluate --truth names"
    read_masks(str(tmp_path / "c.json"), LOCAL)


def test_a_sentence_counts_what_is_skipped_and_names_the_first_three():
    assert skipped_sentence([], "the truth") == ""
    assert skipped_sentence(["a: no bbox"], "the truth") == (
        "1 annotation of the truth can't be used and doesn't count: a: no bbox."
    )
    assert skipped_sentence(["a", "b", "c", "d"], "--classes c.json") == (
        "4 annotations of --classes c.json can't be used and don't count: a; b; c, …."
    )


@pytest.mark.parametrize("ids", [("7", 7), (7, "7"), (7.0, 7), (7, 7.0), ("a-1", "a-1"), (" 7", "7")])
def test_ids_are_numbers_or_texts(tmp_path, ids):
    document = coco(images=[{"id": ids[0], "file_name": "a.jpg"}])
    document["annotations"][0]["image_id"] = ids[1]
    (tmp_path / "c.json").write_text(json.dumps(document))
    truth = read_truth(str(tmp_path / "c.json"), LOCAL)
    assert (truth.keys, truth.skipped) == (("a.jpg",), ())


@pytest.mark.parametrize("bbox", [[50, 50, -30, -30], [50, 50, -30, 20], [5, 5, 3, -1]])
def test_corners_in_the_place_of_width_and_height_are_explained(tmp_path, bbox):
    (tmp_path / "c.json").write_text(json.dumps(coco({**GOOD, "bbox": bbox})))
    with pytest.raises(
        UsageError, match=r"annotation 9: bbox .* negative width or height; COCO's bbox is \[x, y, width, h"
    ):
        read_truth(str(tmp_path / "c.json"), LOCAL)


def test_nothing_usable_names_the_first_annotation(tmp_path):
    document = coco()
    document["annotations"] = [{**GOOD, "image_id": 8}]
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(
        UsageError, match="no object of a class; 1 annotations can't be used, such as annotation 9: no image"
    ):
        read_truth(str(tmp_path / "c.json"), LOCAL)


@pytest.mark.parametrize("content", ["[" * 200_000, "[" * 200_000 + "]" * 200_000, '{"a":' * 200_000])
def test_deep_nesting_is_one_line(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    for read in (read_truth, read_masks, lambda url, storage: read_classes(url, storage, LABELS)):
        with pytest.raises(UsageError, match="nested too deeply") as caught:
            read(str(tmp_path / "c.json"), LOCAL)
        assert len(str(caught.value)) < 300


# -- folders of XML ----------------------------------------------------------------------------------------------------


def xml(name: str, filename: str = "") -> bytes:
    return f"<annotation>{filename}<object><name>{name}</name>{BOX}</object></annotation>".encode()


FILES = [
    ("val_1.xml", True),
    ("val_1.XML", True),
    ("sub/val_1.Xml", True),
    ("_val_1.xml", True),
    ("._val_1.xml", False),
    (".val_1.xml", False),
    ("__MACOSX/val_1.xml", False),
    ("__MACOSX/._val_1.xml", False),
    (".git/val_1.xml", False),
    ("val_1.xml.bak", False),
]


@pytest.mark.parametrize(("name", "is_read"), FILES)
def test_the_same_files_are_hidden_in_a_folder_of_xml(tmp_path, name, is_read):
    content = xml("cat") if is_read else b"\0\5\x16\7 no XML"
    write(tmp_path / "t", {"first.xml": xml("dog"), name: content})
    truth = read_truth(str(tmp_path / "t"), LOCAL)
    assert sorted(truth.labels) == (["cat", "dog"] if is_read else ["dog"])
    assert len(read_classes(str(tmp_path / "t"), LOCAL, LABELS)) == 1 + is_read


def test_an_xml_that_nests_deeply_is_read_or_one_line(tmp_path):
    write(tmp_path / "t", {"a.xml": b"<a>" * 100_000})
    with pytest.raises(UsageError, match="no ILSVRC or VOC annotation") as caught:
        read_truth(str(tmp_path / "t"), LOCAL)
    assert "\n" not in str(caught.value)


def test_class_folders_hide_and_list_as_every_folder(tmp_path: Path):
    write(
        tmp_path,
        {"cat/_DSC1.JPG": b"x", "dog/a.jpg": b"x", "dog/.b.jpg": b"x", "dog/Thumbs.db": b"x", "cat.tar": b"x" * 999},
    )
    images = read_labelled(str(tmp_path), LOCAL)
    assert (images.labels, len(images)) == (("cat", "dog"), 2)
