"""Runs a network on a sample of images in this process and learns a figure/ground direction from the results."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.annotate.annotate_stage import input_pixels
from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.image_reader import ImageReader
from pipeline.annotate.model import Model
from pipeline.arrays.figure_ground import Direction, direction, joined, moments
from pipeline.images.decode import DecodeLimits
from pipeline.images.resize import ResizePlan
from pipeline.models.localize.engine import Engine
from pipeline.models.localize.foreground import Foreground, ForegroundCard, values_sha256
from pipeline.models.localize.methods import METHODS
from pipeline.models.localize.runtime import Runtime
from schemas.options.annotate import AnnotateConfig, Method

BATCH = 16
"""Images that are fetched, decoded and run at a time."""


@dataclass(frozen=True)
class Looked:
    """The results of the network for I images that could be decoded; the tensors are on the CPU."""

    uris: tuple[str, ...]
    versions: tuple[str, ...]
    """The version of each image when it was read: the etag, or size and time."""
    sizes_hw: NDArray[np.int64]
    """(I, 2) pixels of the upright originals."""
    logits: Tensor
    """(I, C)."""
    features: Tensor
    """(I, K, h, w) the last feature maps, float32."""
    stride16: Tensor
    """(I, K', h', w') float16, to save half of the memory; this changes a direction by 1e-6."""
    class_maps: Tensor
    """(I, h, w) the class activation map of each image's most probable class."""


@torch.no_grad()
def look_at(config: AnnotateConfig, model: Model, reader: ImageReader, plan: pa.Table, name: str) -> Looked:
    """Return the network's results for planned inputs (PLAN), squashed to the input size, in float32.

    ``name`` is the name of the tensor of stride 16. Images that can't be fetched or decoded, or whose results are not
    finite, are left out. Raises ModelError where the network can't run here.
    """
    network = model.network.eval()
    side = network.preprocessing.image_size
    resize = ResizePlan("squash", side, network.map_size(side), network.preprocessing.interpolation)
    limits = DecodeLimits(config.max_pixels, config.max_bytes, config.decode_timeout_s)
    decode = DecodeStage(DecodeSpec(limits, resize, config.jpeg_scaling), torch.get_num_threads())
    device: Literal["cpu", "cuda"] = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    runtime = Runtime(device, "fp32", compile=False, threads=torch.get_num_threads(), batch_size=BATCH)
    how: Method = "cam" if METHODS[config.method].exact else "gradcam"
    method = METHODS[how](Engine(network, runtime, name), network.head.to(device))
    found: list[tuple[list[str], list[str], NDArray[np.int64], Tensor, Tensor, Tensor, Tensor]] = []
    for rows in _decoded(reader, decode, plan):
        one = method.forward(torch.cat(input_pixels(rows["pixels"], side)).to(device))
        maps = method.maps(one, one.logits.argmax(1, keepdim=True))[:, 0]
        assert one.stride16 is not None
        finite = torch.isfinite(maps).flatten(1).all(1) & torch.isfinite(one.stride16).flatten(1).all(1)
        kept = torch.nonzero(finite).flatten().tolist()
        good = rows.take(kept)
        versions = [f"{etag or (size, str(at))}" for etag, size, at in _versions(good)]
        sizes_hw = np.stack([good[column].to_numpy() for column in ("height_px", "width_px")], axis=1)
        tensors = [each[finite].cpu() for each in (one.logits, one.features, one.stride16.half(), maps)]
        found.append((good["uri"].to_pylist(), versions, sizes_hw.astype(np.int64), *tensors))
    network.head.cpu()
    if not found:
        nothing = torch.empty(0)
        return Looked((), (), np.empty((0, 2), np.int64), nothing, nothing, nothing, nothing)
    uris, versions_, sizes, *columns = zip(*found, strict=True)
    logits, features, stride16, class_maps = (torch.cat(column) for column in columns)
    return Looked(
        tuple(uri for part in uris for uri in part),
        tuple(version for part in versions_ for version in part),
        np.concatenate(sizes),
        logits,
        features,
        stride16,
        class_maps,
    )


def _decoded(reader: ImageReader, decode: DecodeStage, plan: pa.Table) -> Iterator[pa.Table]:
    """Yield the decoded rows (DECODED) of the inputs that can be decoded, at most BATCH at a time."""
    for start in range(0, len(plan), BATCH):
        rows = decode(reader.fetch(plan.slice(start, BATCH)))
        rows = rows.filter(rows["reason_code"].is_null())
        if len(rows):
            yield rows


def _versions(rows: pa.Table) -> Iterator[tuple[str | None, int | None, object]]:
    return zip(*(rows[name].to_pylist() for name in ("etag", "size_bytes", "modified_at")), strict=True)


def learn(looked: Looked, model: Model, name: str) -> tuple[Foreground, Direction]:
    """Return the direction learned from at least FOLDS images: with the default rule on its card, and its stability."""
    parts = [
        moments(looked.stride16[start : start + BATCH].float(), looked.class_maps[start : start + BATCH], start)
        for start in range(0, len(looked.uris), BATCH)
    ]
    found = direction(joined(parts))
    card = ForegroundCard(
        network=model.network.name,
        weights=values_sha256(model.weights.state),
        tensor=name,
        grid_hw=(looked.stride16.shape[2], looked.stride16.shape[3]),
        data=hashlib.sha256(
            "\n".join(sorted(map(" ".join, zip(looked.uris, looked.versions, strict=True)))).encode()
        ).hexdigest(),
        facts={
            "images": len(looked.uris),
            "explained variance": round(found.explained, 4),
            "|cos| of halves": round(found.halves_cosine, 4),
            "correlation with the class maps": round(found.correlation, 4),
            "its 95 % interval": [round(value, 4) for value in found.interval],
        },
    )
    return Foreground(card, found.mean, found.vector), found
