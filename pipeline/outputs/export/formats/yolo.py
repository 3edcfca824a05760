"""YOLO (Ultralytics): a text file beside each picture's folder, and data.yaml."""

from collections.abc import Mapping

import yaml

from pipeline.outputs.export.batches import Batch, ImageRecord
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.writer import ExportJob, Format, Written


class YoloWriter:
    """Writes ``labels/<split>/<image_id>.txt``: class, centre and size of a box a line, in shares of the picture."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None:
        """Remember where the split's files go."""
        self._dest, self._split = dest, split

    def write(self, batch: Batch) -> None:
        """Write a file for each picture; an empty one for a picture without objects."""
        files = {f"labels/{self._split}/{one.image_id}.txt": _lines(one).encode() for one in batch.records()}
        self._dest.write_many(files)

    def close(self) -> None:
        """Do nothing: every file is written."""


def _lines(record: ImageRecord) -> str:
    lines = []
    for box in record.boxes:
        centre = ((box.xmin + box.xmax) / 2 / record.width_px, (box.ymin + box.ymax) / 2 / record.height_px)
        size = ((box.xmax - box.xmin) / record.width_px, (box.ymax - box.ymin) / record.height_px)
        lines.append(" ".join([str(box.place), *(f"{value:.10g}" for value in (*centre, *size))]) + "\n")
    return "".join(lines)


def _finish(job: ExportJob, dest: Destination, written: Mapping[str, Written]) -> None:
    """Write data.yaml; Ultralytics needs train and val, so that one missing is the first split there is."""
    first = next(iter(written))
    splits = {name: f"images/{name if name in written else first}" for name in ("train", "val", *written)}
    document = {**splits, "nc": len(job.classes.names), "names": dict(enumerate(job.classes.names))}
    head = [" ".join(job.about.split())]
    head += [f"No split is called {name}: {name} is {first} here." for name in ("train", "val") if name not in written]
    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
    dest.write("data.yaml", ("".join(f"# {line}\n" for line in head) + text).encode())


FORMAT = Format(
    YoloWriter,
    ("copy", "link"),
    folder="images/{split}",
    finish=_finish,
    notes=("YOLO's files have no place for scores: choose boxes with --min-score",),
)
