"""One rule for the names of images, columns and classes: every verb that reads a table or a truth finds the same.

``annotate --classes`` reads with ``read_classes``, ``evaluate --truth`` with ``read_truth``, ``train`` with
``read_labelled``. Each case is written once and given to all that take it.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.names import ends_of, ids_in, label_in, plain_name
from pipeline.storage.truth.class_names import read_class_names
from pipeline.storage.truth.image_classes import CLASSES, read_classes
from pipeline.storage.truth.labelled_images import read_label_names, read_labelled
from pipeline.storage.truth.masks import read_masks
from pipeline.storage.truth.truth import Truth, read_truth
from schemas.errors import UsageError
from schemas.label_text import parse_labels
from tests.listings import LOCAL, write
from tests.plans import listing_of, plan_of, planned

LABELS = ["cat", "dog", "crane"]
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"

# -- images ------------------------------------------------------------------------------------------------------------

NAMES = [
    ("/d/x/k.jpg", "k.jpg", True),
    ("/d/x/k.jpg", "x/k.jpg", True),
    ("/d/x/k.jpg", "/d/x/k.jpg", True),
    ("/d/xk.jpg", "k.jpg", False),
    ("/d/x/k.jpg", "K.jpg", False),
    ("s3://b/00000.tar#k.jpg", "k.jpg", True),
    ("s3://b/00000.tar#n/k.jpg", "n/k.jpg", True),
    ("s3://b/00000.tar#n/k.jpg", "00000.tar#n/k.jpg", True),
    ("s3://b/00000.tar#n/k.jpg", "00000.tar/n/k.jpg", True),
    ("s3://b/0.TAR#k.jpg", "k.jpg", True),
    ("s3://b/o.tar#i.tar/k.jpg", "i.tar/k.jpg", True),
    ("s3://b/t.parquet#7/k.jpg", "k.jpg", True),
    ("/d/hash#k.jpg", "k.jpg", False),
    ("/d/hash#k.jpg", "hash#k.jpg", True),
    ("/d/x/k.jpg", "x\\k.jpg", True),
    ("/d/x/k.jpg", " k.jpg ", True),
    ("/d/caf\u00e9.jpg", "cafe\u0301.jpg", True),
    ("/d/cafe\u0301.jpg", "caf\u00e9.jpg", True),
    ("/d/a b%20c.jpg", "a b%20c.jpg", True),
    ("/d/a b.jpg", "a%20b.jpg", False),
    ("https://h/p/k.jpg?v=1", "k.jpg?v=1", True),
    ("/d/it's.jpg", "it's.jpg", True),
    ("/d/k.jpg", "d/../k.jpg", False),
]


@pytest.mark.parametrize(("uri", "key", "fits"), NAMES)
def test_every_verb_finds_the_same_image(tmp_path, uri, key, fits):
    truth = Truth((key,), ((0,),), ("",), np.zeros((1, 4)), np.zeros(1, np.int64), 0)
    assert truth.match([uri, "/other.jpg"]).tolist() == [0 if fits else -1]
    classes = pa.table({"key": [key], "class_ids": [[0]]}, schema=CLASSES)
    plan = plan_of(tmp_path, listing_of([{"uri": uri}, {"uri": "/other.jpg"}]), classes=classes)
    assert [row["classes"] for row in planned(tmp_path, plan)] == [[0] if fits else None, None]


def test_the_ends_of_a_name():
    assert list(ends_of("s3://b/0.tar#n/k.jpg")) == [
        "s3://b/0.tar/n/k.jpg",
        "/b/0.tar/n/k.jpg",
        *_ends("b/0.tar/n/k.jpg"),
    ]
    assert plain_name("a\\b.PQ#1") == "a/b.PQ/1"


def _ends(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


# -- columns -----------------------------------------------------------------------------------------------------------

HEADERS = [
    ("file", "label", "xmin", "ymin", "xmax", "ymax"),
    ("File", "Label", "XMin", "YMin", "XMax", "YMax"),
    ("uri", "class_name", "xmin", "ymin", "xmax", "ymax"),
    ("URI", "Class_Name", "XMIN", "YMIN", "XMAX", "YMAX"),
    ("path", "class", "xmin", "ymin", "xmax", "ymax"),
    ("file_name", "category", "xmin", "ymin", "xmax", "ymax"),
    ("filepath", "label", "xmin", "ymin", "xmax", "ymax"),
    ("image", "label", "xmin", "ymin", "xmax", "ymax"),
    ("url", "label", "xmin", "ymin", "xmax", "ymax"),
    (" file ", " label ", " xmin", "ymin ", "xmax", "ymax"),
    ("\ufefffile", "label", "xmin", "ymin", "xmax", "ymax"),
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".pq", ".CSV"])
@pytest.mark.parametrize("header", HEADERS, ids=["-".join(header[:2]).strip() for header in HEADERS])
def test_every_verb_finds_the_same_columns(tmp_path, header, suffix):
    path = tmp_path / f"t{suffix}"
    row = ("a.jpg", " dog ", "1", "2", "9", "8")
    if suffix in {".parquet", ".pq"}:
        pq.write_table(pa.table({name: [cell] for name, cell in zip(header, row, strict=True)}), path)
    else:
        separator = "\t" if suffix == ".tsv" else ","
        path.write_text(f"{separator.join(header)}\r\n{separator.join(row)}\r\n", encoding="utf-8")
    truth = read_truth(str(path), LOCAL)
    assert (truth.keys, truth.labels, truth.boxes_xyxy.tolist()) == (("a.jpg",), ("dog",), [[1, 2, 9, 8]])
    assert read_classes(str(path), LOCAL, LABELS).to_pydict() == {"key": ["a.jpg"], "class_ids": [[1]]}
    (tmp_path / "a.jpg").write_bytes(b"x")
    if suffix != ".CSV" and header[0] == header[0].strip(" "):
        images = read_labelled(str(path), LOCAL, boxes="half-open")
        assert (images.labels, images.n_boxes) == (("dog",), 1)


@pytest.mark.parametrize("read", [lambda url: read_truth(url, LOCAL), lambda url: read_classes(url, LOCAL, LABELS)])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "name,label\na,dog\n",
            "no column file or uri or path or image; it has name, label; accepted in any case: uri",
        ),
        ("file,path,label\na,b,dog\n", r"which is the uri: file, path\?"),
        ("file,kind\na,dog\n", "no column class_id or .*; it has file, kind; accepted in any case"),
    ],
)
def test_a_missing_column_is_told_alike(tmp_path, read, text, problem):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=problem) as caught:
        read(str(tmp_path / "t.csv"))
    assert "\n" not in str(caught.value)


# -- classes -----------------------------------------------------------------------------------------------------------

IDS = [
    (340, (340,)),
    (340.0, (340,)),
    ("340", (340,)),
    ("340.0", (340,)),
    (" 340 ", (340,)),
    ("340;341", (340, 341)),
    ("340.0;341", (340, 341)),
    ("341.0; 340.0", (340, 341)),
    ("340;340", (340,)),
    ("340;", (340,)),
    ("[340, 341]", (340, 341)),
    ([340, 341], (340, 341)),
    ([340.0], (340,)),
    (np.array([341, 340]), (340, 341)),
    ("", ()),
    (" ", ()),
    (None, ()),
    (float("nan"), ()),
    ([], ()),
    ("-1", None),
    ("3.5", None),
    ("three", None),
    ("1e3", None),
    ("340,341", None),
    ([-1], None),
]


@pytest.mark.parametrize(("cell", "ids"), IDS, ids=[repr(case[0]) for case in IDS])
def test_ids_in_a_cell(cell, ids):
    if ids is None:
        with pytest.raises(ValueError, match=r"class id '.*'; allowed: a whole number, or several separated by ;"):
            ids_in(cell)
    else:
        assert ids_in(cell) == ids


@pytest.mark.parametrize("cell", ["2.0;1", " 1 ;2", "2;1.0"])
def test_every_verb_reads_the_same_ids(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f"file,class_id,xmin,ymin,xmax,ymax\na.jpg,{cell},1,2,9,8\n")
    assert read_truth(str(tmp_path / "t.csv"), LOCAL).class_ids == ((1, 2),)
    assert read_classes(str(tmp_path / "t.csv"), LOCAL, LABELS)["class_ids"].to_pylist() == [[1, 2]]


@pytest.mark.parametrize(
    ("cell", "label"),
    [(" dog ", "dog"), ("kit fox", "kit fox"), (3.0, "3"), (3, "3"), (None, ""), (float("nan"), ""), ("\t", "")],
)
def test_a_label_in_a_cell(cell, label):
    assert label_in(cell) == label


LISTS = [
    (b"cat\ndog\n", ("cat", "dog")),
    (b"cat\r\ndog\r\n", ("cat", "dog")),
    (b"\xef\xbb\xbfcat\ndog", ("cat", "dog")),
    (b" cat \n\tdog\n\n\n", ("cat", "dog")),
    (b'["cat", " dog"]', ("cat", "dog")),
    (b' \n["cat", "dog"]\n', ("cat", "dog")),
    ("caf\u00e9\n\u732b\n".encode(), ("caf\u00e9", "\u732b")),
    (b"cat\n\ndog\n", "an empty name in place 2 of 3"),
    (b"cat\n  \ndog\n", "an empty name in place 2 of 3"),
    (b"\ncat\n", "an empty name in place 1 of 2"),
    (b"", "no name"),
    (b"[]", "no name"),
    (b'["cat", ""]', "an empty name"),
    (b'["cat", 1]', "no text"),
    (b"caf\xe9\n", "not UTF-8 text"),
    (b"[" * 200_000, "nested too deeply"),
]


@pytest.mark.parametrize(("content", "right"), LISTS, ids=[repr(case[0][:20]) for case in LISTS])
def test_every_verb_reads_the_same_list_of_names(tmp_path, content, right):
    (tmp_path / "names.txt").write_bytes(content)
    url = str(tmp_path / "names.txt")
    if isinstance(right, tuple):
        assert parse_labels(content) == read_class_names(url, LOCAL).texts == read_label_names(url, LOCAL) == right
        return
    for read in (read_class_names, read_label_names):
        with pytest.raises(UsageError, match=right) as caught:
            read(url, LOCAL)
        assert "\n" not in str(caught.value)


# -- boxes -------------------------------------------------------------------------------------------------------------

FRACTIONS = ["0.1,0.2,0.9,1.0", "0,0,0.5,1", "0.25,0.25,0.75,0.75", "0.0,0.0,1.0,0.999"]
PIXELS = ["0,0,1,1", "0.5,0,1.5,1", "0,0,9,8", "-0.1,0,0.9,0.9"]


@pytest.mark.parametrize("box", FRACTIONS + PIXELS)
def test_shares_of_the_sides_are_no_pixels(tmp_path, box):
    (tmp_path / "t.csv").write_text(f"uri,label,xmin,ymin,xmax,ymax\na.jpg,dog,{box}\n")
    (tmp_path / "a.jpg").write_bytes(b"x")
    url = str(tmp_path / "t.csv")
    for read in (lambda: read_truth(url, LOCAL), lambda: read_labelled(url, LOCAL, boxes="half-open")):
        if box in PIXELS:
            read()
        else:
            with pytest.raises(UsageError, match=r"all coordinates lie between 0 and 1, like .*; allowed: pixels"):
                read()


def test_one_box_in_pixels_among_small_ones_is_enough(tmp_path):
    (tmp_path / "t.csv").write_text("uri,label,xmin,ymin,xmax,ymax\na,dog,0.1,0,0.9,1\nb,dog,0,0,20,30\n")
    assert len(read_truth(str(tmp_path / "t.csv"), LOCAL).keys) == 2


# -- COCO --------------------------------------------------------------------------------------------------------------


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
    assert read_classes(str(tmp_path / "c.json"), LOCAL, LABELS).to_pydict() == {"key": ["a.jpg"], "class_ids": [[1]]}
    read_masks(str(tmp_path / "c.json"), LOCAL)


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
