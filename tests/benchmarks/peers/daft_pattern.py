"""Daft's own pattern: download → decode_image → resize → a class for batches → write_parquet, on its native runner."""

import os
from datetime import UTC, datetime

os.environ |= {"DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}  # daft reads them at its import

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, Series
from daft.functions import decode_image, download, image_height, image_width, resize

from pipeline.models import registry
from tests.benchmarks.peers.setup import BATCH, Setup
from tests.references.network_by_hand import boxes_of

FOUND = DataType.struct(
    {
        "class_ids": DataType.list(DataType.int64()),
        "label": DataType.string(),
        "probs": DataType.list(DataType.float32()),
        "maps": DataType.list(DataType.float32()),
        "boxes": DataType.list(DataType.float32()),
        "feature": DataType.list(DataType.float32()),
        "annotated_at": DataType.timestamp("us"),
    }
)


@daft.cls
class DaftNetwork:
    """The network; each instance loads it once."""

    def __init__(self, setup: Setup) -> None:
        """Load the network of ``setup``."""
        self._network = setup.network()

    @daft.method.batch(return_dtype=FOUND, unnest=True, batch_size=BATCH)
    def annotate(self, images: Series, heights: Series, widths: Series) -> pa.Array:
        """Return a struct for each image, with its classes, boxes, maps and features."""
        pixels = np.stack(images.to_pylist())
        sizes_hw = np.stack([heights.to_arrow().to_numpy(), widths.to_arrow().to_numpy()], axis=1)
        found = self._network(self._network.normalized(pixels))
        columns = {
            "class_ids": list(found.class_ids),
            "label": self._network.labels[found.class_ids[:, 0]],
            "probs": list(found.probs),
            "maps": list(found.maps.reshape(len(pixels), -1)),
            "boxes": list(boxes_of(found.maps, sizes_hw.astype(np.int64)).reshape(len(pixels), -1)),
            "feature": list(found.pooled),
            "annotated_at": [datetime.now(UTC).replace(tzinfo=None)] * len(pixels),
        }
        return pa.StructArray.from_arrays([pa.array(column) for column in columns.values()], list(columns))


def run(setup: Setup) -> None:
    """Write one row for each image."""
    side = registry.get(setup.model).preprocessing.image_size
    images = daft.from_pydict({"path": setup.paths()})
    images = images.with_column("image", decode_image(download(daft.col("path")), mode="RGB"))
    images = images.with_column("height", image_height(daft.col("image")))
    images = images.with_column("width", image_width(daft.col("image")))
    images = images.with_column("image", resize(daft.col("image"), w=side, h=side))
    found = DaftNetwork(setup).annotate(daft.col("image"), daft.col("height"), daft.col("width"))
    images.select(daft.col("path"), found).write_parquet(setup.out)
