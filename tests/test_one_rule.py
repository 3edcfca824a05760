"""One rule for the names of images, columns and classes: every verb that reads a table or a truth finds the same.

``annotate --classes`` reads with ``read_classes``, ``evaluate --truth`` with ``read_truth``, ``train`` with
``read_labelled``. Each case is written once and given to all that take it.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.names import ends_of, ids_in, label_in, plain_name
from pipeline.storage.truth.class_join import CLASSES
from pipeline.storage.truth.class_names import read_class_names
from pipeline.storage.truth.image_classes import read_classes
from pipeline.storage.truth.labelled_images import read_label_names, read_labelled
from pipeline.storage.truth.truth import Truth, read_truth
from schemas.errors import UsageError
from schemas.label_text import parse_labels
from tests.listings import LOCAL
from tests.plans import listing_of, plan_of, planned

LABELS = ["cat", "dog", "crane"]

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
