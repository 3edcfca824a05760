"""The boxes that training images get: from the table's own columns or a truth, the largest of the image's class."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.terminal.console import Screen
from pipeline.graph.train.training import labelled_images
from pipeline.storage.truth.labelled_images import read_labelled, split_by_hash
from pipeline.storage.truth.truth import read_truth
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.options.train import TrainConfig

STORAGE = StorageConfig()
HEAD = "uri,label,xmin,ymin,xmax,ymax\n"


def boxes(images):
    plan = images.plan
    names = [uri.rpartition("/")[2] for uri in plan["uri"].to_pylist()]
    return dict(zip(names, plan["box"].to_pylist(), strict=True))


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/a.jpg", "cat/b.jpg", "dog/c.jpg", "dog/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def table(folder, rows):
    path = folder / "train.csv"
    path.write_text(HEAD + rows)
    return str(path)


def test_the_largest_box_of_a_table_counts(folder):
    rows = "cat/a.jpg,cat,1,2,3,4\ncat/a.jpg,cat,1,2,4,4\ncat/a.jpg,cat,0,0,3,2\ncat/b.jpg,cat,,,,\n"
    rows += "dog/c.jpg,dog,0,0,9.5,9\n"
    images = read_labelled(table(folder, rows), STORAGE, boxes="half-open")
    assert boxes(images) == {"a.jpg": [1, 2, 4, 4], "b.jpg": None, "c.jpg": [0, 0, 9.5, 9]}
    assert images.n_boxes == 2
    plain = read_labelled(str(folder / "train.csv"), STORAGE)
    assert ("box" in plain.plan.column_names, plain.n_boxes) == (False, 0)
    other = read_labelled(table(folder, rows.replace("9.5", "9.6")), STORAGE, boxes="half-open")
    assert len({images.digest(), plain.digest(), other.digest()}) == 3
    parts = split_by_hash(images, 0.5)
    assert boxes(parts[0]) | boxes(parts[1]) == boxes(images)


def test_a_parquet_table_and_one_without_boxes(folder):
    columns = {"uri": ["cat/a.jpg", "dog/c.jpg"], "label": ["cat", "dog"]}
    numbers = {"xmin": [0.0, None], "ymin": [1.0, None], "xmax": [2.0, None], "ymax": [3.0, None]}
    pq.write_table(pa.table(columns | numbers), folder / "train.parquet")
    images = read_labelled(str(folder / "train.parquet"), STORAGE, boxes="half-open")
    assert boxes(images) == {"a.jpg": [0, 1, 2, 3], "c.jpg": None}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    without = read_labelled(str(folder / "train.parquet"), STORAGE, boxes="half-open")
    assert boxes(without) == {"a.jpg": None, "c.jpg": None}
    assert (without.n_boxes, read_labelled(str(folder), STORAGE, boxes="half-open").n_boxes) == (0, 0)


@pytest.mark.parametrize("cells", ["1,2,,4", "1,2,x,4", "1,2,1,4", "1,2,inf,4"])
def test_what_is_no_box(folder, cells):
    with pytest.raises(UsageError, match=r"row 2: .*; allowed: four numbers xmin, ymin, xmax, ymax with xmin < xmax"):
        read_labelled(table(folder, f"cat/a.jpg,cat,0,0,1,1\ndog/c.jpg,dog,{cells}\n"), STORAGE, boxes="half-open")


def test_a_truth_gives_boxes_of_each_images_own_class(folder):
    truth = folder / "truth.csv"
    truth.write_text(
        "file,class_id,label,xmin,ymin,xmax,ymax\n"
        "cat/a.jpg,7,cat,0,0,5,5\ncat/a.jpg,7,cat,0,0,6,6\ncat/a.jpg,0,dog,0,0,9,9\n"
        "b.jpg,0,n02123045,1,1,2,2\nb.jpg,1,n02084071,1,1,8,8\ndog/c.jpg,1,dog,3,3,4,4\nelse.jpg,1,dog,0,0,1,1\n"
    )
    images = read_labelled(str(folder), STORAGE)
    found = boxes(images.with_boxes_of(read_truth(str(truth), STORAGE)))
    # A name that is no class of the training is told by its id.
    assert found == {"a.jpg": [0, 0, 6, 6], "b.jpg": [1, 1, 2, 2], "c.jpg": [3, 3, 4, 4], "d.jpg": None}


def prepared(folder, **options):
    defaults = {"input": str(folder), "out": str(folder) + "-out", "supervision": "boxes"}
    defaults |= {} if "val" in options else {"val_share": 0.0}
    return labelled_images(TrainConfig.resolve(defaults | options), Screen())


def test_boxes_for_training_and_validation_from_one_file(folder):
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "c.jpg"}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]},
            {"image_id": 2, "category_id": 4, "bbox": [5, 5, 1, 1]},
        ],
    }
    coco = folder / "boxes.json"
    coco.write_text(json.dumps(document))
    train, val = prepared(folder, boxes=str(coco), val=str(folder))
    assert boxes(train) == boxes(val) == {"a.jpg": [1, 2, 4, 6], "b.jpg": None, "c.jpg": [5, 5, 6, 6], "d.jpg": None}


def test_inclusive_boxes_end_after_their_last_pixels(folder):
    # 10 pixels in a row are more than 3 × 3, though as half-open boxes they would be none.
    rows = "cat/a.jpg,cat,0,0,2,2\ncat/a.jpg,cat,0,0,9,0\ncat/b.jpg,cat,,,,\ndog/c.jpg,dog,5,6,5,6\n"
    train, _ = prepared(table(folder, rows), out=str(folder / "out"), iou="inclusive")
    assert boxes(train) == {"a.jpg": [0, 0, 10, 1], "b.jpg": None, "c.jpg": [5, 6, 6, 7]}
    with pytest.raises(UsageError, match=r"row 2: 0, 0, 9, 0; allowed: .* xmin < xmax"):
        prepared(table(folder, rows), out=str(folder / "out"))
    with pytest.raises(UsageError, match=r"row 2: 3, 0, 2, 0; allowed: .* xmin <= xmax"):
        prepared(table(folder, rows.replace("0,0,9,0", "3,0,2,0")), out=str(folder / "out"), iou="inclusive")
    truth = folder / "truth.csv"
    truth.write_text("file,label,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,4\nc.jpg,dog,0,0,3,3\n")
    for iou, expected in (("inclusive", [[1, 2, 4, 5], [0, 0, 4, 4]]), ("half-open", [[1, 2, 3, 4], [0, 0, 3, 3]])):
        train, val = prepared(folder, boxes=str(truth), val=str(folder), iou=iou)
        assert [boxes(train)["a.jpg"], boxes(val)["c.jpg"]] == expected
    with pytest.raises(UsageError, match=r"--iou inclusive: allowed: with --supervision boxes"):
        prepared(folder, iou="inclusive", supervision="labels")


def test_supervision_without_boxes_is_refused(folder):
    with pytest.raises(UsageError, match=r"--supervision boxes: INPUT .* has no box for any of the 4 training images"):
        prepared(folder)
    (folder / "truth.csv").write_text("file,label,xmin,ymin,xmax,ymax\na.jpg,dog,0,0,1,1\n")
    with pytest.raises(UsageError, match=r"--supervision boxes: --boxes .*truth.csv has no box for any of the 4"):
        prepared(folder, boxes=str(folder / "truth.csv"))
    with pytest.raises(UsageError, match=r"--boxes 'b\.csv': allowed: with --supervision boxes"):
        prepared(folder, boxes="b.csv", supervision="labels")
    both = table(folder, "cat/a.jpg,cat;dog,0,0,1,1\ndog/c.jpg,dog,0,0,1,1\n")
    with pytest.raises(UsageError, match="a box belongs to an image's one label, and these have several"):
        prepared(both, out=str(folder / "out"))
