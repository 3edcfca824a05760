"""Classes that a file names for images: how it is read, and how they find their images in a plan."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.truth.class_join import CLASSES
from pipeline.storage.truth.image_classes import read_classes
from schemas.errors import InputError, UsageError
from tests.listings import LOCAL
from tests.plans import listing_of, named, plan_of, planned

LABELS = ["cat", "dog", "crane", "crane"]


def class_table(rows: dict[str, list[int]]) -> pa.Table:
    return pa.table({"key": list(rows), "class_ids": list(rows.values())}, schema=CLASSES)


def test_classes_find_their_images_by_uri_or_its_last_parts(tmp_path):
    inputs = [
        {"uri": "/d/x/a.jpg"},
        {"uri": "/d/y/a.jpg"},
        {"uri": "/d/xa.jpg"},
        {"uri": "s3://b/k.tar#n/a.jpg", "path": "b/k.tar", "offset": 512},
        {"uri": "s3://b/k.tar#m.jpg", "path": "b/k.tar", "offset": 1024},
        {"uri": "/d/hash#m.jpg"},
    ]
    keys = {"a.jpg": [0], "x/a.jpg": [1, 2], "/d/y/a.jpg": [3], "s3://b/k.tar#n/a.jpg": [2], "m.jpg": [1], "": [0]}
    plan = plan_of(tmp_path, listing_of(inputs), classes=class_table(keys))
    assert [row["classes"] for row in planned(tmp_path, plan)] == [[0, 1, 2], [0, 3], None, [0, 2], [1], None]
    assert plan.with_classes == 4


def test_many_images_of_one_name_cost_no_more_than_others(tmp_path):
    names = [f"/d/{number}/image.jpg" for number in range(20_000)]
    keys = {f"{number}/image.jpg": [0] for number in range(20_000)}
    plan = plan_of(tmp_path, listing_of(named(*names)), classes=class_table(keys), rows_per_slice=20_000)
    assert plan.with_classes == 20_000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("file,class_id\na.jpg,1\nb.jpg,\na.jpg,0\n", {"a.jpg": [0, 1]}),
        ("uri,imagenet_classes,label\na.jpg,1;0,ignored\n", {"a.jpg": [0, 1]}),
        ("path,class_ids\na.jpg, 2 ; 3.0 \n", {"a.jpg": [2, 3]}),
        ("image,label\na.jpg,dog\na.jpg,crane\n", {"a.jpg": [1, 2, 3]}),
        ("image,class_name\nNA,cat\n", {"NA": [0]}),
    ],
)
def test_class_files(tmp_path, text, found):
    path = tmp_path / "c.csv"
    path.write_text(text)
    table = read_classes(str(path), LOCAL, LABELS)
    assert table.schema.equals(CLASSES)
    assert dict(zip(*table.to_pydict().values(), strict=True)) == found


def test_class_lists_in_parquet(tmp_path):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"uri": ["a", "b", "b"], "class_ids": [[1, 0], None, [2]]}), path)
    assert read_classes(str(path), LOCAL, LABELS).to_pydict() == {"key": ["a", "b"], "class_ids": [[0, 1], [2]]}


def coco(*names: str) -> str:
    """Return a document whose one image has an object of each name."""
    objects = [{"image_id": 7, "category_id": number, "bbox": [1, 1, 5, 5]} for number in range(len(names))]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    images = [{"id": 7, "file_name": "x/a.jpg"}]
    return json.dumps({"images": images, "categories": categories, "annotations": objects})


def test_a_coco_truth_names_the_classes_that_the_network_has(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(coco("person", "crane", "cat", "cat"))
    assert read_classes(str(path), LOCAL, LABELS).to_pydict() == {"key": ["x/a.jpg"], "class_ids": [[0, 2, 3]]}


def test_an_xml_truth_finds_the_classes_of_ilsvrcs_list(tmp_path):
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    (tmp_path / "val_1.xml").write_text(f"<annotation><object><name>n02119789</name>{box}</object></annotation>")
    found = read_classes(str(tmp_path), LOCAL, ["n01440764 tench", "n02119789 kit fox, Vulpes macrotis"])
    assert found.to_pydict() == {"key": ["val_1.JPEG"], "class_ids": [[1]]}


def test_a_wsolevaluation_truth_names_ids(tmp_path):
    (tmp_path / "localization.txt").write_text("val/a.JPEG,1,2,3,4\nval/b.JPEG,0,0,9,9\n")
    (tmp_path / "class_labels.txt").write_text("val/a.JPEG,3\nval/b.JPEG,0\n")
    found = read_classes(str(tmp_path), LOCAL, LABELS)
    assert found.to_pydict() == {"key": ["val/a.JPEG", "val/b.JPEG"], "class_ids": [[3], [0]]}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("c.csv", "file,class_id\na,4\n", "class id 4; allowed: 0 to 3"),
        ("c.csv", "file,class_id\na,-1\n", "class id '-1'; allowed: a whole number"),
        ("c.csv", "file,label\na,dgo\n", "the network has no class 'dgo'; did you mean 'dog'"),
        ("c.csv", "name,label\na,dog\n", "no column file or uri or path or image; it has name, label"),
        ("c.csv", "file,kind\na,dog\n", "no column class_id or"),
        ("c.csv", "", "can't be read as csv"),
        ("c.parquet", "x", "can't be read as parquet"),
        ("c.json", coco("person"), "the network has none of its classes, like 'person'; `camlake models` and --labels"),
        ("c.json", "{", "^--classes: truth '.*': can't be read as json"),
        ("c.xlsx", "x", r"allowed: \.csv, \.tsv, \.parquet"),
    ],
)
def test_wrong_class_files_are_one_line(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=problem) as caught:
        read_classes(str(tmp_path / name), LOCAL, LABELS)
    assert "\n" not in str(caught.value)


def test_a_missing_class_file(tmp_path):
    with pytest.raises(InputError, match="not found"):
        read_classes(str(tmp_path / "no.csv"), LOCAL, LABELS)


def test_the_real_annotations_name_every_photograph(tmp_path, shared):
    folder = shared / "real" / "ilsvrc300"
    classes = read_classes(str(folder / "annotations.csv"), LOCAL, [str(number) for number in range(1000)])
    plan = plan_of(tmp_path, list_inputs(str(folder), LOCAL), classes=classes)
    assert plan.counts.planned == plan.with_classes == 300
    of = {Path(row["uri"]).name: row["classes"] for row in planned(tmp_path, plan)}
    assert of["ILSVRC2012_val_00000347.JPEG"] == [472]
