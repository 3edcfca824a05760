"""Outputs with features and feature maps of which the objects are known, made without a network."""

from collections.abc import Iterable
from datetime import timedelta

import numpy as np
import pyarrow as pa
import torch

from pipeline.arrays.feature_codec import encode, pack
from pipeline.models.weights.head_file import Head, HeadCard, head_bytes
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import Lease
from schemas.reasons import Reason
from tests.fake_lake import CHANNELS, SETTINGS, START, FakeLake, image_id, manifest_of, rows_of

OBJECTS = ("cup", "key", "leaf")
MAP_HW = (3, 4)
BITS = 3
OUTPUTS = ["boxes", "heatmaps", "features", "feature_maps"]


def head_by_hand(folder, weight=None, classes=OBJECTS, digest="12345678" * 8, name="head.safetensors"):
    """Write a head whose class c looks at channel c alone, and return its path and itself."""
    weight = np.eye(len(classes), CHANNELS, dtype=np.float32) * 3 if weight is None else weight
    card = HeadCard("tiny-12345678", digest, tuple(classes), "logistic", "0" * 64)
    n = len(classes)
    head = Head(card, weight.astype(np.float32), np.full(n, -2, np.float32), np.full(n, 0.5, np.float32))
    (folder / name).write_bytes(head_bytes(head))
    return str(folder / name), head


def maps_of(number: int) -> np.ndarray:
    """Return the feature maps (CHANNELS, 3, 4) of picture p/<number>.jpg: its object's channel is high in two cells."""
    maps = np.random.default_rng(number).random((CHANNELS, *MAP_HW), np.float32) * 0.5
    row, column = place_of(number)
    maps[number % 3, row, column : column + 2] += 4
    return maps


def place_of(number: int) -> tuple[int, int]:
    """Return the row and the first column of the two cells of a picture's object; pictures are 64×48 pixels."""
    return number % MAP_HW[0], number % (MAP_HW[1] - 1)


def feature_lake(out: str, images: int, digest: str = "12345678" * 8, resize: str = "squash") -> FakeLake:
    """Return an output with pictures p/0.jpg, p/1.jpg, … in two commits, and one rejected input."""
    lake = FakeLake(out)
    add_run(lake, range(images), {"bad.jpg": Reason.TRUNCATED}, tasks=2, digest=digest, resize=resize)
    return lake


def add_run(
    lake: FakeLake,
    numbers: Iterable[int],
    rejected: dict[str, Reason] | None = None,
    tasks: int = 1,
    digest: str = "12345678" * 8,
    resize: str = "squash",
) -> None:
    """Add a whole run of pictures to an output."""
    lake.hours += 1
    run_id, numbers = f"2026112{lake.hours}T060000-{new_run_id()[-6:]}", list(numbers)
    at = START + timedelta(hours=lake.hours)
    versions = {f"p/{number}.jpg": "v1" for number in numbers}
    preprocessing = {"resize": resize, "map_hw": list(MAP_HW), "image_size": 8}
    manifest = manifest_of(run_id, planned=len(versions) + len(rejected or {}), at=at)
    lineage = manifest.lineage.model_copy(update={"preprocessing": preprocessing, "model_digest": digest})
    settings = {**SETTINGS, "outputs": OUTPUTS, "feature_map_bits": BITS}
    manifest = manifest.model_copy(update={"lineage": lineage, "settings": settings})
    with Lease.acquire(lake.fs, lake.root, run_id) as lease:
        start_run(lake.fs, lake.root, manifest)
        lake.write_plan(run_id, versions | dict.fromkeys(rejected or {}, "v1"))
        for task in range(tasks):
            own = numbers[task::tasks]
            rows = rows_of(run_id, {f"p/{number}.jpg": "v1" for number in own}, None if task else rejected, at)
            rows["features"] = pa.Table.from_pylist(
                [_key(number, run_id) | {"feature": maps_of(number).mean((1, 2))} for number in own],
                schema=rows["features"].schema,
            )
            shape = {"map_h": MAP_HW[0], "map_w": MAP_HW[1], "channels": CHANNELS, "bits": BITS}
            rows["feature_maps"] = pa.Table.from_pylist(
                [_key(number, run_id) | shape | {"codes": _codes(number)} for number in own],
                schema=rows["feature_maps"].schema,
            )
            lake.commit(run_id, lease.generation, f"{task:06d}", rows)
        finish_run(lake.fs, lake.root, manifest, lease.generation)


def _key(number: int, run_id: str) -> dict[str, str]:
    return {"image_id": image_id(f"p/{number}.jpg"), "run_id": run_id}


def _codes(number: int) -> bytes:
    return packed(torch.from_numpy(maps_of(number)[None]), BITS).tobytes()


def packed(maps: torch.Tensor, bits: int) -> np.ndarray:
    """Return the codes of ``maps`` (N, K, h, w) as a run stores them, (N, bytes)."""
    return pack(encode(maps, bits).numpy(), maps.mean((2, 3)).numpy(), bits)
