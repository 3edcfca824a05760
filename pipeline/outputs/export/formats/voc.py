"""Pascal VOC: one XML a picture in Annotations, lists of pictures in ImageSets/Main.

VOC counts pixels from 1 and includes the last one, so that the half-open box [0, w) is written as 1 to w. Fractions of
pixels are kept, as in VOC2012's own files.
"""

from pipeline.outputs.export.batches import Batch, Box, ImageRecord
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.writer import ExportJob, Format
from pipeline.outputs.export.xml_text import xml_text


class VocWriter:
    """Writes ``Annotations/<image_id>.xml`` and the split's list."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None:
        """Begin the list."""
        self._dest, self._model = dest, job.run.model
        self._list = dest.open(f"ImageSets/Main/{split}.txt")

    def write(self, batch: Batch) -> None:
        """Write a file for each picture."""
        records = list(batch.records())
        self._dest.write_many({f"Annotations/{one.image_id}.xml": self._document(one).encode() for one in records})
        self._list.write("".join(f"{one.image_id}\n" for one in records).encode())

    def close(self) -> None:
        """End the list."""
        self._list.close()

    def _document(self, record: ImageRecord) -> str:
        return (
            f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{record.file}</filename>\n"
            f"  <path>{xml_text(record.uri)}</path>\n"
            f"  <source><database>camlake</database><annotation>{xml_text(self._model)}</annotation></source>\n"
            f"  <size><width>{record.width_px}</width><height>{record.height_px}</height><depth>3</depth></size>\n"
            f"  <segmented>0</segmented>\n{''.join(map(_object, record.boxes))}</annotation>\n"
        )


def _object(box: Box) -> str:
    score = "" if box.score is None else f"<score>{box.score!r}</score>"
    sides = {"xmin": box.xmin + 1, "ymin": box.ymin + 1, "xmax": box.xmax, "ymax": box.ymax}
    corners = "".join(f"<{side}>{value:.10g}</{side}>" for side, value in sides.items())
    return (
        f"  <object><name>{xml_text(box.name)}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox>{corners}</bndbox>{score}</object>\n"
    )


FORMAT = Format(VocWriter, ("copy", "link", "reference"), folder="JPEGImages")
