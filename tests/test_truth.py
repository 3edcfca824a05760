"""Every format of truth gives the same pairs of image and class; what can't be meant is refused in one line."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest

from pipeline.storage.truth.truth import Truth, read_truth
from schemas.errors import InputError, UsageError
from schemas.options.config import StorageConfig

LOCAL = StorageConfig()
HEADER = "file,width,height,label,class_id,xmin,ymin,xmax,ymax\n"


def from_text(folder: Path, text: str, name: str = "truth.csv") -> Truth:
    (folder / name).write_text(text)
    return read_truth(str(folder / name), LOCAL)


def from_parquet(folder: Path, columns: dict[str, list]) -> Truth:
    pd.DataFrame(columns).to_parquet(folder / "truth.parquet")
    return read_truth(str(folder / "truth.parquet"), LOCAL)


def test_csv_groups_the_boxes_of_one_class_of_an_image(tmp_path: Path) -> None:
    rows = "a.png,96,80,ring,3,1,2,30,40\nb.png,96,80,star,5,0,0,9.5,9\na.png,96,80,ring,3,50,2,60,40\n"
    truth = from_text(tmp_path, HEADER + rows + "a.png,96,80,star,5,1,1,2,2\n")
    assert truth.keys == ("a.png", "b.png", "a.png")
    assert truth.class_ids == ((3,), (5,), (5,))
    assert truth.labels == ("ring", "star", "star")
    assert truth.owner.tolist() == [0, 0, 1, 2]
    assert truth.boxes_xyxy.tolist() == [[1, 2, 30, 40], [50, 2, 60, 40], [0, 0, 9.5, 9], [1, 1, 2, 2]]


def test_several_ids_and_an_empty_one(tmp_path: Path) -> None:
    text = "uri,imagenet_classes,class_name,xmin,ymin,xmax,ymax\na,341;340,zebra,0,0,1,1\na,,person,0,0,1,1\n"
    truth = from_text(tmp_path, text)
    assert truth.class_ids == ((340, 341),)
    assert truth.without_class == 1


def test_label_alone_and_a_label_that_reads_like_a_missing_value(tmp_path: Path) -> None:
    truth = from_text(tmp_path, "path,label,xmin,ymin,xmax,ymax\na,null,0,0,1,1\n")
    assert (truth.class_ids, truth.labels) == (((),), ("null",))


@pytest.mark.parametrize("ids", [[340.0, float("nan")], ["340", None], [[340], []], [340, None]])
def test_parquet_ids_as_people_store_them(tmp_path: Path, ids: list) -> None:
    box = {name: [value, value] for name, value in {"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}.items()}
    truth = from_parquet(tmp_path, {"image": ["a", "b"], "class_ids": ids, **box})
    assert (truth.keys, truth.class_ids, truth.without_class) == (("a",), ((340,),), 1)


def test_coco_json_leaves_crowds_out(tmp_path: Path) -> None:
    note = {"image_id": 7, "category_id": 2, "bbox": [10, 20, 5, 6]}
    document = {
        "images": [{"id": 7, "file_name": "x/a.jpg"}],
        "categories": [{"id": 2, "name": "zebra"}],
        "annotations": [{**note, "iscrowd": 0}, {**note, "iscrowd": 1}],
    }
    truth = from_text(tmp_path, json.dumps(document), "instances.json")
    assert (truth.keys, truth.labels, truth.class_ids) == (("x/a.jpg",), ("zebra",), ((),))
    assert truth.boxes_xyxy.tolist() == [[10, 20, 15, 26]]


def test_ilsvrc_folder(tmp_path: Path) -> None:
    corners = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    item = f"<object><name>n02391049</name>{corners}</object>"
    (tmp_path / "val").mkdir()
    for name in ("ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"):
        xml = f"<annotation><filename>{name}</filename>{item.format(1)}{item.format(3)}</annotation>"
        (tmp_path / "val" / f"{name}.xml").write_text(xml)
    truth = read_truth(str(tmp_path), LOCAL)
    assert truth.keys == ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    assert truth.labels == ("n02391049", "n02391049")
    assert truth.boxes_xyxy[:2].tolist() == [[1, 2, 9, 8], [3, 2, 9, 8]]


def test_xml_without_a_file_name_is_called_as_its_own_file(tmp_path: Path) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    for name, filename in (("val_1", ""), ("val_2", "<filename> </filename>")):
        xml = f"<annotation>{filename}<object><name> cat </name>{box}</object></annotation>"
        (tmp_path / f"{name}.xml").write_text(xml)
    truth = read_truth(str(tmp_path), LOCAL)
    assert (truth.keys, truth.labels) == (("val_1.JPEG", "val_2.JPEG"), ("cat", "cat"))


@pytest.mark.parametrize("name", ["", "<name></name>"])
def test_an_xml_object_without_a_name_is_refused(tmp_path: Path, name: str) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    (tmp_path / "val_1.xml").write_text(f"<annotation><object>{name}{box}</object></annotation>")
    with pytest.raises(UsageError, match=r"^truth '\S+val_1\.xml': an object without a name$"):
        read_truth(str(tmp_path), LOCAL)


def test_wsolevaluation_folder(tmp_path: Path) -> None:
    (tmp_path / "localization.txt").write_text("val/a.JPEG,1,2,3,4\nval/a.JPEG,5,6,7,8\nval/b.JPEG,0,0,9,9\n")
    (tmp_path / "class_labels.txt").write_text("val/a.JPEG,65\nval/b.JPEG,970\n")
    truth = read_truth(str(tmp_path), LOCAL)
    assert (truth.keys, truth.class_ids) == (("val/a.JPEG", "val/b.JPEG"), ((65,), (970,)))
    assert truth.owner.tolist() == [0, 0, 1]


def test_wsolevaluation_folder_of_masks_has_pairs_without_boxes(tmp_path: Path) -> None:
    lines = "val/a.jpg,a1.png,a_ignore.png\nval/a.jpg,a2.png,\nval/b.jpg,b.png,\nval/none.jpg,none.png,\n"
    (tmp_path / "localization.txt").write_text(lines)
    (tmp_path / "class_labels.txt").write_text("val/a.jpg,65\nval/b.jpg,7\n")
    truth = read_truth(str(tmp_path), LOCAL)
    assert (truth.keys, truth.class_ids, truth.without_class) == (("val/a.jpg", "val/b.jpg"), ((65,), (7,)), 1)
    assert (truth.boxes_xyxy.shape, truth.owner.tolist()) == ((0, 4), [])


def test_truth_on_another_file_system() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/t/truth.csv", (HEADER + "a.png,9,9,ring,3,1,2,3,4\n").encode())
    assert read_truth("memory://t/truth.csv", LOCAL).keys == ("a.png",)


def test_the_real_truths_read_as_they_are(shared: Path) -> None:
    photographs = read_truth(str(shared / "real/ilsvrc300/annotations.csv"), LOCAL)
    assert (len(photographs.keys), photographs.boxes_xyxy.shape, photographs.without_class) == (300, (447, 4), 0)
    coco = read_truth(str(shared / "real/coco60/annotations.csv"), LOCAL)
    assert (len(coco.keys), coco.boxes_xyxy.shape, coco.without_class) == (60, (60, 4), 157)


def keyed(*keys: str) -> Truth:
    boxes, owner = np.zeros((len(keys), 4)), np.arange(len(keys))
    return Truth(keys, ((0,),) * len(keys), ("",) * len(keys), boxes, owner, 0)


def test_a_key_fits_the_uri_or_its_end_at_a_slash() -> None:
    uris = ["s3://bucket/val/a.png", "b.png", "s3://bucket/xa.png"]
    assert keyed("a.png", "b.png", "val/c.png", "a.png").match(uris).tolist() == [0, 1, -1, 0]


def test_the_longest_key_wins() -> None:
    assert keyed("a.png", "val/a.png").match(["x/train/a.png", "x/val/a.png"]).tolist() == [0, 1]


def test_a_key_that_fits_two_images_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'a.png' fits both 'x/a.png' and 'y/a.png'"):
        keyed("a.png").match(["x/a.png", "y/a.png"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class_id,xmin,ymin,xmax,ymax\na,1,0,0,1,1\n", "no column file or uri or path or image; it has name"),
        ("file,xmin,ymin,xmax,ymax\na,0,0,1,1\n", "no column class_id or class_ids or imagenet_classes or label"),
        ("file,class_id,xmin,ymin,width,height\na,1,0,0,1,1\n", "no column xmax"),
        (HEADER + "a,1,1,ring,3,0,0,1,wide\n", "row 1 has a coordinate that is no number"),
        (HEADER + "a,1,1,ring,three,0,0,1,1\n", "class id 'three'"),
        (HEADER + "a,1,1,ring,-3,0,0,1,1\n", "class id '-3'"),
        (HEADER + "a,1,1,ring,3,50,50,20,20\n", "are these width, height"),
        (HEADER + "a,1,1,person,,0,0,1,1\n", "no object of a class"),
        ("", "can't be read as csv"),
    ],
)
def test_a_wrong_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_text(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("truth.parquet", "PAR1 no more", "can't be read as parquet"),
        ("truth.json", "{", "can't be read as json"),
        ("truth.json", "[1]", "not COCO's JSON"),
        ("truth.json", '{"images": []}', "not COCO's JSON"),
        ("truth.txt", "a", r"allowed: .csv"),
        ("d/a.xml", "<annotation>", "no ILSVRC or VOC annotation"),
        ("d/a.xml", "<a><filename>x</filename><object><name>y</name></object></a>", "no ILSVRC or VOC annotation"),
        ("d/a.csv", "a", "neither XML files nor"),
        ("d/localization.txt", "a,b.png,c.png", "class_labels.txt"),
    ],
)
def test_a_wrong_file_or_folder_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_truth(str(tmp_path / name.split("/", maxsplit=1)[0]), LOCAL)


def test_a_missing_truth_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"truth .*truth\.csv: not found"):
        read_truth(str(tmp_path / "truth.csv"), LOCAL)
