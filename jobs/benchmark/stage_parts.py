"""The timings of the suite ``stages``: a stage in batches, and the parts of the stage with the network."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.annotate.annotate_stage import AnnotateSpec, AnnotateStage
from pipeline.models.localize.engine import Engine, to_host
from pipeline.models.localize.localizer import Localizer
from pipeline.models.networks.network import CamNetwork


class Timed(NamedTuple):
    """A call to time, and the number of images that it processes."""

    run: Callable[[], Any]
    images: int


def by_batch(stage: Callable[[pa.Table], pa.Table], table: pa.Table, size: int) -> Timed:
    """Return the timing of a stage that processes ``table`` in batches of ``size`` images."""
    batches = [table.slice(at, size) for at in range(0, len(table), size)]
    return Timed(lambda: pa.concat_tables(map(stage, batches)), len(table))


class _Recalled(nn.Module):
    """A trunk that returns the stored feature maps of the first images at once, for any input."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features: Tensor
        self.register_buffer("features", features)

    def forward(self, images: Tensor) -> Tensor:
        return self.features[: len(images)]


def network_parts(spec: AnnotateSpec, state: dict[str, Tensor], decoded: pa.Table) -> dict[str, Timed]:
    """Return the timings of the forward pass alone, and of the steps after it with a forward pass that takes no time.

    Such a forward pass makes the timings of the other steps less noisy.
    """
    side, size = spec.image_size, spec.runtime.batch_size
    good = decoded.filter(decoded["reason_code"].is_null())
    pixels = [np.frombuffer(row, np.uint8).reshape(side, side, 3) for row in good["pixels"].to_pylist()]
    batches = torch.split(torch.from_numpy(np.stack(pixels)), size)
    sizes_hw = np.stack([good["height_px"].to_numpy(), good["width_px"].to_numpy()], axis=1).astype(np.int64)
    valid_hw = spec.resize.valid_hw(sizes_hw)
    engine = Engine(spec.load(state).eval(), spec.runtime)
    engine.warm_up()
    with torch.no_grad(), engine.on_stream():
        features = torch.from_numpy(to_host([engine(engine.to_device(batches[0]))])[0])

    def recalled(state: dict[str, Tensor]) -> CamNetwork:
        real = spec.load(state)
        return CamNetwork(real.name, _Recalled(features.clone()), real.head, real.preprocessing)

    def forward(engine: Engine) -> None:
        with torch.no_grad(), engine.on_stream():
            for batch in batches:
                to_host([engine(engine.to_device(batch))[:, 0, 0, 0]])

    def localize() -> None:
        for at, batch in zip(itertools.count(0, size), batches, strict=False):
            localizer(batch, sizes_hw[at : at + size], valid_hw[at : at + size])

    idle = Engine(recalled(state), spec.runtime)
    localizer = Localizer(recalled(state), spec.rule, spec.runtime)
    stage = AnnotateStage(dataclasses.replace(spec, load=recalled), state)
    idle.warm_up()
    localizer.warm_up()
    return {
        "network": Timed(lambda: forward(engine), len(good)),
        "no network": Timed(lambda: forward(idle), len(good)),
        "no network, maps and boxes": Timed(localize, len(good)),
        "no network, maps, boxes and answers": by_batch(stage, good, size),
    }
