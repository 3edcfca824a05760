"""Label Studio: tasks with predictions, in percent of the picture, and the labelling configuration to import first."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.outputs.export.batches import Batch, Box, ImageRecord
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.writer import ExportJob, Format, Written
from pipeline.outputs.export.xml_text import xml_text

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class LabelStudioWriter:
    """Writes ``tasks-<split>.json``: a task an image, with one prediction of all its boxes."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None:
        """Begin the list of tasks."""
        self._model, self._file, self._tasks = job.run.model, dest.open(f"tasks-{split}.json"), 0
        self._file.write(b"[")

    def write(self, batch: Batch) -> None:
        """Write a task for each image."""
        tasks = [_encode(self._task(record)) for record in batch.records()]
        self._file.write((",\n" * (self._tasks > 0) + ",\n".join(tasks)).encode())
        self._tasks += len(tasks)

    def close(self) -> None:
        """End the list."""
        self._file.write(b"]\n")
        self._file.close()

    def _task(self, record: ImageRecord) -> dict[str, Any]:
        """Return a task; the score of its prediction, by which tasks can be sorted, is that of the best box."""
        data = {"image": record.uri, "image_id": record.image_id}
        if not record.boxes:
            return {"data": data, "predictions": []}
        scores = [box.score for box in record.boxes if box.score is not None]
        prediction = {
            "model_version": self._model,
            "score": max(scores, default=None),
            "result": [_region(record, number, box) for number, box in enumerate(record.boxes)],
        }
        return {"data": data, "predictions": [prediction]}


def _region(record: ImageRecord, number: int, box: Box) -> dict[str, Any]:
    width, height = record.width_px, record.height_px
    return {
        "id": f"{record.image_id[:10]}-{number}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "x": box.xmin / width * 100,
            "y": box.ymin / height * 100,
            "width": (box.xmax - box.xmin) / width * 100,
            "height": (box.ymax - box.ymin) / height * 100,
            "rotation": 0,
            "rectanglelabels": [box.name],
        },
        "score": box.score,
    }


def _finish(job: ExportJob, dest: Destination, written: Mapping[str, Written]) -> None:
    labels = "".join(f'    <Label value="{xml_text(name)}"/>\n' for name in job.classes.names)
    text = (
        '<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n'
        f"{labels}  </RectangleLabels>\n</View>\n"
    )
    dest.write("labeling-config.xml", text.encode())


FORMAT = Format(
    LabelStudioWriter,
    ("reference",),
    finish=_finish,
    notes=("Label Studio opens each picture by its uri: connect the store as its cloud or local storage",),
)
