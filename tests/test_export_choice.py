"""Which boxes an export has, what its classes are called, and which split an image is in."""

import csv
import io
import json

import numpy as np
import pytest

from pipeline.outputs.export.export_output import split_numbers
from schemas.errors import StoreError, UsageError
from tests.export_lake import HOSTILE, Told, export, make_lake, write_pictures
from tests.fake_lake import FakeLake

W, H = 64, 48
HALF = (0.0, 0.0, 32.0, 48.0)
LABELS = {**HOSTILE, 134: "crane", 517: "crane"}
BOXES = {
    "a.jpg": [
        Told(20, (0, 0, 64, 48), 0.9, 0.5),
        Told(20, HALF, 0.4, 0.5, threshold=0.2),
        Told(3, HALF, None, 0.25, rank=1),
    ],
    "b.jpg": [Told(134, HALF, 0.5, 0.1), Told(517, (0, 0, 8, 8), 0.6, 0.05, rank=1)],
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choice")
    write_pictures(folder / "in", dict.fromkeys(("a.jpg", "b.jpg", "none.jpg"), (W, H)))
    return make_lake(folder / "labels", [folder / "in"], (W, H), BOXES, labels=LABELS)


def names(lake, dest, **options):
    """The exported boxes as the image's name, the class and the first digit of the score."""
    export(lake, dest, "csv", **options)
    rows = list(csv.DictReader(io.StringIO((dest / "boxes-train.csv").read_text(encoding="utf-8"), newline="")))
    scores = [f"{float(row['box_score']):.1f}" if row["box_score"] else "" for row in rows]
    return sorted((row["uri"][-5], row["label"], score) for row, score in zip(rows, scores, strict=True))


A, B = ("a", "cat", "0.9"), ("a", "cat", "0.4")
C, D, E = ("a", HOSTILE[3], ""), ("b", "crane (134)", "0.5"), ("b", "crane (517)", "0.6")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [A, B, C, D, E]),
        ({"min_score": 0.9}, [A]),
        ({"min_score": 0.4}, [A, B, D, E]),
        ({"min_prob": 0.1}, [A, B, C, D]),
        ({"min_area": 0.6}, [A]),
        ({"max_area": 0.5}, [B, C, D, E]),
        ({"min_area": 0.5, "max_area": 0.5}, [B, C, D]),
        ({"max_rank": 0}, [A, B, D]),
        ({"where": "threshold < 0.3 -- the tight box"}, [B]),
        ({"where": "xmax = width_px OR uri LIKE '%b.jpg' AND class_id <> 517"}, [A, D]),
        ({"classes": "cat"}, [A, B]),
        ({"classes": "20, crane"}, [A, B, D, E]),
        ({"classes": 134}, [D]),
        ({"classes": ["line\nbreak, comma; tab\t", "cat"]}, UsageError),
        ({"classes": "cat", "background": True}, [A, B, ("b", "", ""), ("g", "", "")]),
        ({"min_score": 0.95}, UsageError),
        ({"model": "other"}, UsageError),
        ({"model": "tiny-12345678", "max_rank": 0, "min_score": 0.5}, [A, D]),
    ],
)
def test_filters(lake, tmp_path, options, expected):
    if expected is UsageError:
        with pytest.raises(UsageError, match=r"allowed|nothing to export|has tiny"):
            names(lake, tmp_path / "out", **options)
        assert list(tmp_path.iterdir()) == []
    else:
        expected = [("e" if one[0] == "g" else one[0], *one[1:]) for one in expected]
        assert names(lake, tmp_path / "out", **options) == sorted(expected)


def test_a_label_with_commas_is_one_label(tmp_path):
    write_pictures(tmp_path / "in", {"a.jpg": (W, H)})
    lake = make_lake(tmp_path / "labels", [tmp_path / "in"], (W, H), {"a.jpg": [Told(8, HALF), Told(20, HALF, rank=1)]})
    assert [one[1] for one in names(lake, tmp_path / "out", classes=HOSTILE[8])] == [HOSTILE[8]]


def test_ids_of_classes_do_not_depend_on_the_filters(lake, tmp_path):
    found = {}
    for number, options in enumerate(({}, {"classes": "cat"}, {"min_score": 0.6, "max_rank": 1})):
        export(lake, tmp_path / str(number), "coco", **options)
        document = json.loads((tmp_path / str(number) / "annotations/instances_train.json").read_text(encoding="utf-8"))
        found[number] = {one["name"]: one["id"] for one in document["categories"]}
    assert found[0] == {HOSTILE[3]: 4, "cat": 21, "crane (134)": 135, "crane (517)": 518}
    assert found[1] == {"cat": 21}
    assert found[2] == found[0]


RENAMES = {
    "yaml": 'cat: "animal"\n"O\'Neil \\"the\\" <b>&amp;": animal\nnobody: x\n134: bird\n',
    "csv": 'from,to\ncat,animal\n"O\'Neil ""the"" <b>&amp;",animal\nnobody,x\n134,bird\n',
}


@pytest.mark.parametrize("suffix", RENAMES)
@pytest.mark.parametrize("only", [False, True])
def test_renamed_classes_merge_and_the_rest_stays_or_goes(lake, tmp_path, suffix, only, capsys):
    (tmp_path / f"names.{suffix}").write_text(RENAMES[suffix], encoding="utf-8")
    options = {"rename": str(tmp_path / f"names.{suffix}"), "only_renamed": only}
    found = names(lake, tmp_path / "out", **options)
    rest = [] if only else [("b", "crane", "0.6")]  # The only one that is still called so.
    animals = [("a", "animal", score) for score in ("0.9", "0.4", "")]
    assert found == sorted([*animals, ("b", "bird", "0.5"), *rest])
    assert "1 names of --rename are no class with boxes in OUT: 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("n.csv", "old,new\na,b\n", "columns old, new; allowed: CSV with the columns from, to"),
        ("n.csv", "from,to\ncat,\n", "'cat' to ''; allowed: two names that are not empty"),
        ("n.csv", "from,to\ncat,a\ncat,b\n", "'cat' gets two names, 'a' and 'b'"),
        ("n.yaml", "- cat\n", "allowed: YAML with one line `from: to`"),
        ("n.yaml", "true: cat\n", "True is no name in YAML; write it in quotes"),
        ("n.yaml", "a: [", "while parsing"),
    ],
)
def test_a_file_of_names_that_can_not_be_used_is_one_line(lake, tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"^--rename ") as error:
        export(lake, tmp_path / "out", "csv", rename=str(tmp_path / name))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "cocoa"}, "--to 'cocoa': allowed: coco, csv, cvat, hf, labelstudio, voc, webdataset, yolo"),
        ({"to": "yolo", "images": "reference"}, "--images 'reference': allowed with --to yolo: copy, link"),
        ({"where": "nosuch = 1"}, "--where 'nosuch = 1': Binder Error"),
        ({"where": "label ="}, "--where 'label =': Parser Error"),
        ({"where": "xmin = label"}, "--where 'xmin = label': Conversion Error"),
        ({"where": "missing(label)"}, "--where 'missing(label)': Catalog Error"),
        ({"split": "train=.8,val=.3"}, "--split 'train=.8,val=.3': allowed: NAME=SHARE"),
        ({"split": "train=.5,train=.5"}, "allowed: NAME=SHARE"),
        ({"split": "../x=1"}, "allowed: NAME=SHARE"),
        ({"split": "a=0,b=1"}, "allowed: NAME=SHARE"),
        ({"only_renamed": True}, "--only-renamed: allowed: together with --rename FILE"),
        ({"min_area": 0.5, "max_area": 0.2}, "--min-area 0.5: allowed: at most --max-area 0.2"),
        (
            {"to": "coco", "images": "link", "dest": "memory://x"},
            "--images link: DEST memory://x: allowed: a folder on",
        ),
    ],
)
def test_wrong_options_are_one_line_and_nothing_is_written(lake, tmp_path, options, said):
    given = {"dest": str(tmp_path / "out"), "to": "csv", **options}
    with pytest.raises(UsageError) as error:
        export(lake, **given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_several_models_need_a_choice(tmp_path):
    lake = FakeLake(str(tmp_path / "labels"))
    lake.run({"a": "v1"})
    lake.run({"a": "v1"}, model="other-87654321")
    with pytest.raises(UsageError, match=r"^--model is missing: this output has other-87654321, tiny-12345678$"):
        export(lake, tmp_path / "out", "csv")
    export(lake, tmp_path / "out", "csv", model="other-87654321")
    assert json.loads((tmp_path / "out/camlake-export.json").read_text())["model"] == "other-87654321"


def test_only_current_rows_are_exported(tmp_path):
    lake = FakeLake(str(tmp_path / "labels"))
    lake.run({"a": "v1", "b": "v1"})
    lake.run({"a": "v2"})
    export(lake, tmp_path / "out", "csv")
    assert len((tmp_path / "out/boxes-train.csv").read_text().splitlines()) == 1 + 4


def test_an_output_without_rows_is_one_line(tmp_path):
    lake = FakeLake(str(tmp_path / "labels"))
    lake.run({}, open_inputs=["a"], finish=False)
    with pytest.raises(StoreError, match="has no committed rows yet"):
        export(lake, tmp_path / "out", "csv")


def test_splits_are_fair_disjoint_and_stay():
    shares = {"train": 0.8, "val": 0.15, "test": 0.05}
    ids = [f"{number:032x}" for number in range(20_000)]
    found = split_numbers(ids, shares)
    np.testing.assert_allclose(np.bincount(found) / len(ids), [0.8, 0.15, 0.05], atol=0.01)
    np.testing.assert_array_equal(split_numbers(ids[::7], shares), found[::7])
    assert split_numbers(ids[:8], {"a": 0.5, "b": 0.5}).tolist() == [0, 0, 0, 1, 1, 1, 1, 0]


def test_every_image_is_in_one_split_with_its_picture(lake, tmp_path):
    export(lake, tmp_path / "out", "yolo", split="train=.5,val=.5", background=True)
    pictures = [path.relative_to(tmp_path / "out/images") for path in (tmp_path / "out/images").rglob("*.jpg")]
    labels = {path.relative_to(tmp_path / "out/labels").with_suffix(".jpg") for path in tmp_path.rglob("*.txt")}
    assert len(pictures) == 3
    assert set(pictures) == labels
