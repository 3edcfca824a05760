"""Ray Data's documented pattern for batch inference: read_images → map → map_batches(class) → write_parquet.

It follows Ray's example of image classification with a ResNet: torchvision's transforms run in a map of rows, and a
class runs the network. Ray's defaults are kept; the class also returns maps, boxes and features.
"""

import logging
import os
from datetime import UTC, datetime
from typing import Any

import numpy as np
import ray
import torch
from ray.data import DataContext
from torchvision import transforms

from pipeline.models import registry
from tests.benchmarks.peers.setup import BATCH, Setup
from tests.references.network_by_hand import boxes_of


class Transform:
    """Turns a row with an image into a row with a normalized tensor, by torchvision's transforms."""

    def __init__(self, model: str) -> None:
        """Choose the transforms; they squash where Ray's example crops, so that all sides see the same picture."""
        wanted = registry.get(model).preprocessing
        self._transform = transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.Resize((wanted.image_size, wanted.image_size)),
                transforms.Normalize(wanted.mean, wanted.std),
            ]
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the path, the height and width in pixels, and the network's input (3, S, S)."""
        height, width = row["image"].shape[:2]
        return {"path": row["path"], "height": height, "width": width, "input": self._transform(row["image"]).numpy()}


class RayNetwork:
    """The network; each actor loads it once."""

    def __init__(self, setup: Setup) -> None:
        """Load the network of ``setup``."""
        self._network = setup.network()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a row for each image, with its classes, boxes, maps and features."""
        inputs = torch.from_numpy(batch["input"]).to(memory_format=torch.channels_last)
        found = self._network(inputs)
        sizes_hw = np.stack([batch["height"], batch["width"]], axis=1)
        return {
            "path": batch["path"],
            "class_ids": found.class_ids,
            "label": self._network.labels[found.class_ids[:, 0]].astype(str),
            "probs": found.probs,
            "maps": found.maps,
            "boxes": boxes_of(found.maps, sizes_hw),
            "feature": found.pooled,
            "annotated_at": np.full(len(inputs), datetime.now(UTC).replace(tzinfo=None), "datetime64[us]"),
        }


def run(setup: Setup) -> None:
    """Write one row for each image, on a Ray that starts here with its defaults for CPUs and number of actors."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    images = ray.data.read_images(setup.photographs, mode="RGB", include_paths=True)
    found = images.map(Transform(setup.model)).map_batches(RayNetwork, fn_constructor_args=(setup,), batch_size=BATCH)
    found.write_parquet(setup.out)
    ray.shutdown()
