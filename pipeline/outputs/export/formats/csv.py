"""CSV: one file a split, a row a box; an image without a box has one row with empty columns."""

import csv
import io

from pipeline.outputs.export.batches import Batch, Box, ImageRecord
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.writer import ExportJob, Format

HEADER = (
    *("image_id", "uri", "file", "width_px", "height_px", "label"),
    *("xmin", "ymin", "xmax", "ymax", "box_score", "class_prob", "rank", "threshold", "component", "method"),
)


class CsvWriter:
    """Writes ``boxes-<split>.csv`` in UTF-8, quoted as RFC 4180 says."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None:
        """Begin the file with its header; ``file`` is empty where pictures are neither linked nor copied."""
        self._folder = "" if job.images == "reference" else FORMAT.folder.format(split=split)
        self._file = dest.open(f"boxes-{split}.csv")
        self._file.write((",".join(HEADER) + "\n").encode())

    def write(self, batch: Batch) -> None:
        """Write the boxes of some images."""
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        for record in batch.records():
            image = self._image(record)
            if not record.boxes:
                rows.writerow([*image, *[None] * (len(HEADER) - len(image))])
            rows.writerows([*image, *_columns(box)] for box in record.boxes)
        self._file.write(text.getvalue().encode())

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _image(self, record: ImageRecord) -> list[object]:
        file = f"{self._folder}/{record.file}" if self._folder else ""
        return [record.image_id, record.uri, file, record.width_px, record.height_px]


def _columns(box: Box) -> tuple[object, ...]:
    return box[1:-1]  # name to method


FORMAT = Format(CsvWriter, ("reference", "link", "copy"), folder="images/{split}")
