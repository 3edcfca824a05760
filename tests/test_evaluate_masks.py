"""PxAP by hand: of COCO's polygons and run lengths, and of the mask files of wsolevaluation."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.filesystems import connect
from pipeline.storage.lake.whole_objects import write_whole
from schemas.errors import InputError, UsageError
from schemas.options.config import StorageConfig
from tests.scoring import BUMP, Output, figure_of, job, one_map, scores_of_job


def coco_truth(folder: Path, **kinds: Any) -> str:
    """Write a truth of one image, 100×100 pixels, and return its path; ``kinds`` are more columns of the object."""
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "ring"}],
        "annotations": [
            {
                "image_id": 7,
                "category_id": 3,
                "bbox": [0, 0, 50, 100],
                "segmentation": [[0, 0, 50, 0, 50, 100, 0, 100]],
            },
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1, **kinds},
        ],
    }
    (folder / "truth.json").write_text(json.dumps(document))
    return str(folder / "truth.json")


def test_pxap_of_a_map_that_is_half_right(tmp_path: Path) -> None:
    heat = np.zeros((2, 2), np.uint8)
    heat[0] = 255
    # The upper half is 255 to 0, the same left, in the object, and right: precision is 1/2 at every score.
    one_map(heat).write(str(tmp_path / "out"))
    document = scores_of_job(tmp_path, coco_truth(tmp_path))
    found = figure_of(document, "pxap")
    assert found["value"] == pytest.approx(0.5, abs=0.01)
    assert found["full_image"] == pytest.approx(0.5, abs=0.01)
    assert found["central_70"] == pytest.approx(0.5, abs=0.01), "half of the central box is inside, and of the rest"
    assert (tmp_path / "out/_reports/precision_recall.png").is_file()
    assert [each["pxap"] for each in document["classes"]] == [found], "the one class there is"


def test_each_class_has_the_pxap_of_its_own_masks(tmp_path: Path) -> None:
    heat = np.array([[0, 255]], np.uint8)
    output = Output()
    shapes = {"ring": [50, 0, 100, 0, 100, 100, 50, 100], "star": [0, 0, 50, 0, 50, 100, 0, 100], "cat": None}
    document: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    for class_id, (label, shape) in enumerate(shapes.items(), start=1):
        output.image(f"{label}.jpg", class_id)
        output.answer(f"{label}.jpg", 0, class_id, heat, (0, 0, 50, 100))
        document["images"].append({"id": class_id, "file_name": f"{label}.jpg"})
        document["categories"].append({"id": class_id, "name": label})
        item = {"image_id": class_id, "category_id": class_id, "bbox": [0, 0, 50, 100]}
        document["annotations"].append(item | ({"segmentation": [shape]} if shape else {}))
    output.write(str(tmp_path / "out"))
    (tmp_path / "two.json").write_text(json.dumps(document))
    classes = {
        each["class_name"]: each["pxap"] for each in scores_of_job(tmp_path, str(tmp_path / "two.json"))["classes"]
    }
    assert classes["ring"]["value"] > 0.9
    assert classes["star"]["value"] < 0.5
    assert classes["ring"]["full_image"] == classes["star"]["full_image"] == pytest.approx(0.5, abs=0.02)
    assert classes["cat"] is None
    assert "| ring | 1 | PxAP |" in (tmp_path / "out/_reports/scores.md").read_text()


def test_pxap_leaves_out_what_lies_in_a_crowd(tmp_path: Path) -> None:
    heat = np.full((1, 4), 255, np.uint8)
    heat[0, :2] = 0
    one_map(heat).write(str(tmp_path / "out"))
    # By columns, background first: the right half is a crowd, so only the object's pixels are left.
    crowd = {"segmentation": {"size": [100, 100], "counts": [50 * 100, 50 * 100]}}
    assert figure_of(scores_of_job(tmp_path, coco_truth(tmp_path)), "pxap")["value"] < 0.5
    assert figure_of(scores_of_job(tmp_path, coco_truth(tmp_path, **crowd)), "pxap")["value"] == pytest.approx(1)


def test_a_segmentation_of_another_size_is_named(tmp_path: Path) -> None:
    one_map(BUMP).write(str(tmp_path / "out"))
    crowd = {"segmentation": {"size": [10, 10], "counts": [100]}}
    with pytest.raises(UsageError, match=r"'a.jpg': segmentation of 'ring': is of \[10, 10\] rows and columns"):
        job(tmp_path, truth=coco_truth(tmp_path, **crowd))


TOP, CORNER, MIDDLE = "val/b_1.png", "val/b_2.png", "val/b_ignore.png"


def mask_files() -> dict[str, bytes]:
    """Return a wsolevaluation truth of b.jpg, by quarters of its width and height; each mask is of its own size.

    The upper half of the right column and the upper left corner are objects, the columns between them left out, with
    all of the uppermost row; so the ignore mask covers objects too.
    """
    objects = np.zeros((2, 4, 4), np.uint8)
    objects[0, :2, 3] = objects[1, 0, 0] = 255
    ignored = np.zeros((4, 4), np.uint8)
    ignored[:, 1:3] = ignored[0] = 1
    sized = {TOP: objects[0], CORNER: objects[1].repeat(2, 0).repeat(2, 1), MIDDLE: ignored.repeat(30, 0).repeat(5, 1)}
    files = {name: cv2.imencode(".png", mask)[1].tobytes() for name, mask in sized.items()}
    lines = f"b.jpg,{TOP},{MIDDLE}\nb.jpg,{CORNER},\nelsewhere.jpg,gone.png,\n"
    return files | {"localization.txt": lines.encode(), "class_labels.txt": b"b.jpg,1\nelsewhere.jpg,1\n"}


def output_of_b(folder: Path) -> None:
    """Write an output of b.jpg whose map is 0 in the left quarter, 255 in the right one, and between them between."""
    output = Output()
    output.image("s3://x/b.jpg", 1, width=400, height=300)
    output.answer("s3://x/b.jpg", 0, 1, np.array([[0, 255]], np.uint8), (0, 0, 50, 100))
    output.write(str(folder / "out"))


def check_pxap(document: dict[str, Any]) -> None:
    found = figure_of(document, "pxap")
    # Of the right column's four quarters two are inside; of the left one's, one, of eight quarters in all.
    assert found["value"] == pytest.approx(2 / 4 * 2 / 3 + 3 / 8 * 1 / 3)
    assert found["full_image"] == pytest.approx(3 / 8)
    # The central box takes 22 of the 56 pixels of each outer row and column.
    inside, outside = 22 * (22 + 56) + 22 * 22, 22 * (56 + 22) + 22 * (56 + 56 + 22)
    recall = inside / (3 * 56 * 56)
    assert found["central_70"] == pytest.approx(inside / (inside + outside) * recall + 3 / 8 * (1 - recall))


@pytest.mark.parametrize("place", ["local", "memory", "s3"])
def test_mask_files_are_united_and_the_ignored_rest_is_left_out(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    output_of_b(tmp_path)
    root, storage = f"{tmp_path}/truth", StorageConfig()
    if place == "memory":
        root = "memory://truth"
    elif place == "s3":
        store = request.getfixturevalue("s3")
        root, storage = f"s3://{store.bucket()}/truth", store.storage
    fs, path = connect(root, storage)
    for name, content in mask_files().items():
        write_whole(fs, f"{path}/{name}", content)
    document = scores_of_job(tmp_path, root, endpoint_url=storage.endpoint_url)
    check_pxap(document)
    assert {figure["metric"] for figure in document["figures"]} == {
        *("top1_accuracy", "top1_error", "top5_accuracy", "top5_error", "pxap")
    }
    assert [each["gt_known"] or each["max_box_acc"] for each in document["classes"]] == [None]
    assert any(note.startswith("GT-known") and "has masks and no boxes" in note for note in document["notes"])


def test_mask_files_may_lie_under_another_root(tmp_path: Path) -> None:
    output_of_b(tmp_path)
    for name, content in mask_files().items():
        write_whole(LocalFileSystem(), str(tmp_path / ("truth" if name.endswith(".txt") else "masks") / name), content)
    truth = str(tmp_path / "truth")
    with pytest.raises(InputError, match=r"^truth '\S+/localization.txt': line 1: mask val/b_1.png: not found$"):
        job(tmp_path, truth=truth)
    check_pxap(scores_of_job(tmp_path, truth, masks=str(tmp_path / "masks")))
    with pytest.raises(UsageError, match="--calibrate: the truth has masks and no boxes; allowed: a truth with boxes"):
        job(tmp_path, truth=truth, masks=str(tmp_path / "masks"), calibrate=True)


def test_without_heatmaps_pxap_is_left_out(tmp_path: Path) -> None:
    output = one_map(BUMP)
    output.settings["outputs"] = ["boxes"]
    output.write(str(tmp_path / "out"))
    document = scores_of_job(tmp_path, coco_truth(tmp_path))
    assert "pxap" not in {figure["metric"] for figure in document["figures"]}
    assert "PxAP is left out: the output has no heatmaps." in document["notes"]
