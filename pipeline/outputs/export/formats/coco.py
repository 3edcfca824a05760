"""COCO: one JSON a split, with scores, and masks as run lengths where the output has class maps."""

import json
import shutil
from typing import Any

from pycocotools import mask as coco_mask

from pipeline.outputs.export.batches import Batch, Box
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.writer import ExportJob, Format

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class CocoWriter:
    """Writes images as they come, and annotations into a temporary file that is appended at the end."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None:
        """Begin ``annotations/instances_<split>.json``; categories have the same ids in every export of an output."""
        self._by_uri = job.images == "reference"
        self._ids = [one.class_ids[0] + 1 for one in job.classes.chosen]
        self._file = dest.open(f"annotations/instances_{split}.json")
        self._annotations = dest.spool()
        self._images = self._boxes = 0
        started = job.run.started_at
        categories = [
            {"id": number, "name": one.name, "supercategory": ""}
            for number, one in zip(self._ids, job.classes.chosen, strict=True)
        ]
        head = {
            "info": {
                "description": job.about,
                "url": "",
                "version": job.run.lineage.camlake_version,
                "year": started.year,
                "contributor": job.run.model,
                "date_created": f"{started:%Y/%m/%d}",
            },
            "licenses": [],
            "categories": categories,
        }
        self._file.write(f'{_encode(head)[:-1]},"images":['.encode())

    def write(self, batch: Batch) -> None:
        """Write images and annotations; their ids count from 1."""
        images, annotations = [], []
        for record in batch.records():
            self._images += 1
            image = {"id": self._images, "file_name": record.uri if self._by_uri else record.file}
            size = {"width": record.width_px, "height": record.height_px}
            images.append(image | size | {"coco_url": record.uri, "camlake_image_id": record.image_id})
            for box in record.boxes:
                self._boxes += 1
                annotations.append(self._annotation(box))
        before = self._images > len(images)
        self._file.write((",\n" * before + _encode(images)[1:-1]).encode())
        if annotations:
            before = self._boxes > len(annotations)
            self._annotations.write((",\n" * before + _encode(annotations)[1:-1]).encode())

    def _annotation(self, box: Box) -> dict[str, Any]:
        width, height = box.xmax - box.xmin, box.ymax - box.ymin
        found: dict[str, Any] = {
            "id": self._boxes,
            "image_id": self._images,
            "category_id": self._ids[box.place],
            "bbox": [box.xmin, box.ymin, width, height],
            "area": float(coco_mask.area(box.mask)) if box.mask else width * height,
            "iscrowd": 0,
            "segmentation": box.mask or [],
            "score": box.score,
        }
        return found

    def close(self) -> None:
        """Append the annotations."""
        self._file.write(b'],"annotations":[')
        self._annotations.seek(0)
        shutil.copyfileobj(self._annotations, self._file, 2**20)
        self._annotations.close()
        self._file.write(b"]}\n")
        self._file.close()


FORMAT = Format(CocoWriter, ("reference", "link", "copy"), folder="images/{split}", masks=True)
