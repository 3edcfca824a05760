"""Run in an environment of its own: print what a tool's library reads of an export, as JSON.

``python export_readers.py READER FOLDER`` prints for each picture, by the stem of its name or for Label Studio by its
image_id, the list of [class, xmin, ymin, xmax, ymax], and for Label Studio the problems of each prediction too.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, list[list[Any]]]


def supervision_coco(folder: Path) -> Found:
    from supervision import DetectionDataset

    file = folder / "annotations/instances_train.json"
    return _of_supervision(DetectionDataset.from_coco(str(folder / "images/train"), str(file)))


def supervision_yolo(folder: Path) -> Found:
    from supervision import DetectionDataset

    places = (folder / "images/train", folder / "labels/train", folder / "data.yaml")
    return _of_supervision(DetectionDataset.from_yolo(*map(str, places)))


def supervision_voc(folder: Path) -> Found:
    from supervision import DetectionDataset

    places = (folder / "JPEGImages", folder / "Annotations")
    return _of_supervision(DetectionDataset.from_pascal_voc(*map(str, places)))


def _of_supervision(dataset: Any) -> Found:
    return {
        Path(path).stem: [
            [dataset.classes[number], *sides]
            for number, sides in zip(found.class_id.tolist(), found.xyxy.tolist(), strict=True)
        ]
        for path, _, found in dataset
    }


def fiftyone_coco(folder: Path) -> Found:
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    places = {"data_path": folder / "images/train", "labels_path": folder / "annotations/instances_train.json"}
    texts = {name: str(place) for name, place in places.items()}
    found, masks = {}, []
    with COCODetectionDatasetImporter(**texts, label_types=["detections", "segmentations"]) as pictures:
        for path, size, labels in pictures:
            boxes = labels["detections"].detections
            assert all(0 <= one.confidence <= 1 for one in boxes)
            found[Path(path).stem] = [
                [one.label, *_of_fractions(one.bounding_box, size.width, size.height)] for one in boxes
            ]
            if "segmentations" in labels:  # Boxes that have a mask.
                masks += [one.mask for one in labels["segmentations"].detections]
    assert masks
    assert all(mask.any() for mask in masks)
    return found


def _of_fractions(box: list[float], width: int, height: int) -> list[float]:
    x, y, w, h = box
    return [x * width, y * height, (x + w) * width, (y + h) * height]


def datumaro_cvat(folder: Path) -> Found:
    from datumaro.components.dataset import Dataset

    dataset = Dataset.import_from(str(folder / "train"), "cvat")
    labels = dataset.categories()[next(iter(dataset.categories()))]
    return {item.id: [[labels[one.label].name, *one.points] for one in item.annotations] for item in dataset}


def label_studio(folder: Path) -> Found:
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((folder / "labeling-config.xml").read_text(encoding="utf-8"))
    found = {}
    for task in json.loads((folder / "tasks-train.json").read_text(encoding="utf-8")):
        boxes = []
        for prediction in task["predictions"]:
            problems = interface.validate_prediction(prediction, return_errors=True)
            assert not problems, problems
            for one in prediction["result"]:
                value, (width, height) = one["value"], (one["original_width"], one["original_height"])
                x, y = value["x"] * width / 100, value["y"] * height / 100
                corner = (x + value["width"] * width / 100, y + value["height"] * height / 100)
                boxes.append([value["rectanglelabels"][0], x, y, *corner])
        found[task["data"]["image_id"]] = boxes
    return found


READERS: dict[str, Callable[[Path], Found]] = {
    each.__name__: each
    for each in (fiftyone_coco, supervision_coco, supervision_yolo, supervision_voc, datumaro_cvat, label_studio)
}

if __name__ == "__main__":
    print(json.dumps(READERS[sys.argv[1]](Path(sys.argv[2]))))
