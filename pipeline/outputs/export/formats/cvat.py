"""CVAT 1.1 for images: one XML a split."""

from pipeline.outputs.export.batches import Batch, Box, ImageRecord
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.writer import ExportJob, Format
from pipeline.outputs.export.xml_text import xml_text
from pipeline.storage.filesystems import canonical_url


class CvatWriter:
    """Writes ``<split>/annotations.xml``; a box has its score as an attribute, and ``auto`` as its source."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None:
        """Begin the file with the labels."""
        self._by_uri, self._images = job.images == "reference", 0
        self._input = canonical_url(str(job.run.config.get("input", "")))
        self._file = dest.open(f"{split}/annotations.xml")
        labels = "".join(map(_label, job.classes.names))
        head = (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task>'
            f"<name>{xml_text(job.run.model)}</name><labels>\n{labels}</labels></task></meta>\n"
        )
        self._file.write(head.encode())

    def write(self, batch: Batch) -> None:
        """Write an element for each image."""
        self._file.write("".join(map(self._image, batch.records())).encode())

    def close(self) -> None:
        """End the file."""
        self._file.write(b"</annotations>\n")
        self._file.close()

    def _image(self, record: ImageRecord) -> str:
        name = xml_text(task_name(record.uri, self._input) if self._by_uri else record.file)
        number, self._images = self._images, self._images + 1
        return (
            f'<image id="{number}" name="{name}" width="{record.width_px}" height="{record.height_px}">\n'
            f"{''.join(map(_box, record.boxes))}</image>\n"
        )


def task_name(uri: str, folder: str) -> str:
    """Return the name that a picture has in a task of CVAT's: its key in the bucket, or its path in the input's folder.

    A local picture that lies elsewhere has its whole path.

    >>> task_name("s3://bucket/photos/a.jpg", "s3://bucket/photos/")
    'photos/a.jpg'
    >>> task_name("/data/photos/cats/a.jpg", "/data/photos")
    'cats/a.jpg'
    """
    _, is_url, place = uri.partition("://")
    if is_url:
        return place.partition("/")[2]
    return uri.removeprefix(f"{folder.rstrip('/')}/").lstrip("/")


def _label(name: str) -> str:
    return (
        f"<label><name>{xml_text(name)}</name><type>rectangle</type><attributes><attribute><name>score</name>"
        "<mutable>False</mutable><input_type>text</input_type><default_value></default_value><values></values>"
        "</attribute></attributes></label>\n"
    )


def _box(box: Box) -> str:
    score = "" if box.score is None else f'<attribute name="score">{box.score!r}</attribute>'
    sides = {"xtl": box.xmin, "ytl": box.ymin, "xbr": box.xmax, "ybr": box.ymax}
    corners = " ".join(f'{side}="{value:.10g}"' for side, value in sides.items())
    return f'  <box label="{xml_text(box.name)}" source="auto" occluded="0" {corners} z_order="0">{score}</box>\n'


FORMAT = Format(
    CvatWriter,
    ("reference", "link", "copy"),
    folder="{split}/images",
    notes=("CVAT finds pictures by name: make its task of the same bucket, of the same folder, or of copied pictures",),
)
