"""WebDataset: tar shards with each picture beside a JSON of its boxes."""

import io
import json
import tarfile

from pipeline.outputs.export.batches import Batch, ImageRecord
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.writer import ExportJob, Format

SHARD_BYTES = 512 * 2**20
"""Size from which on a shard takes no more pictures."""
SHARD_IMAGES = 10_000


class WebDatasetWriter:
    """Writes ``<split>-<number>.tar``; the key of a picture is its image_id."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None:
        """Begin the first shard."""
        self._dest, self._split, self._shards = dest, split, 0
        self._open()

    def write(self, batch: Batch) -> None:
        """Write the pictures; a new shard begins where the last one is full."""
        for record in batch.records():
            if self._images == SHARD_IMAGES or self._tar.offset >= SHARD_BYTES:
                self.close()
                self._open()
            self._images += 1
            self._add(record.file, record.data or b"")
            self._add(f"{record.image_id}.json", json.dumps(_document(record), ensure_ascii=False).encode())

    def close(self) -> None:
        """End the shard."""
        self._tar.close()
        self._file.close()

    def _open(self) -> None:
        self._file = self._dest.open(f"{self._split}-{self._shards:06d}.tar")
        tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (close() does)
        self._tar = self._dest.keep(tar)
        self._shards, self._images = self._shards + 1, 0

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


def _document(record: ImageRecord) -> dict[str, object]:
    boxes = [
        {
            "label": box.name,
            "class": box.place,
            "bbox_xyxy": [box.xmin, box.ymin, box.xmax, box.ymax],
            "score": box.score,
            "class_prob": box.prob,
            "rank": box.rank,
            "threshold": box.threshold,
        }
        for box in record.boxes
    ]
    image = {"image_id": record.image_id, "uri": record.uri, "width": record.width_px, "height": record.height_px}
    return {**image, "boxes": boxes}


FORMAT = Format(WebDatasetWriter, ("embed",))
