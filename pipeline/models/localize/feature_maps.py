"""Feature maps of batches as codes on the device, and the networks for which that codec holds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arrays.feature_codec import encode, pack
from pipeline.models.localize.engine import to_host
from pipeline.models.networks.heads import ConvHead, LinearHead, NormedHead
from pipeline.models.networks.network import CamNetwork
from schemas.errors import ModelError, UsageError

_PROBE_SEED = 7
_PROBES = 2
"""Pictures of noise with which a trunk is asked for values below zero; a trunk without a ReLU has thousands of them."""


class FeatureMapCodes(NamedTuple):
    """The packed codes of the feature maps of B images, in main memory."""

    packed: NDArray[np.uint8]
    """(B, bytes), see ``pipeline.arrays.feature_codec``; the codes of images that are not finite have no meaning."""
    map_hw: tuple[int, int]
    """Rows and columns of the feature maps, padding included."""
    bits: int


def encoded(features: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the codes (B, h·w, K) uint8 of ``features`` (B, K, h, w) and whether each image is below zero, (B,).

    A NaN is not below zero.
    """
    return encode(features, bits), features.amin((1, 2, 3)) < 0


def feature_map_codes(
    codes: Tensor, negative: Tensor, pooled: NDArray[np.float32], map_hw: Sequence[int], bits: int
) -> FeatureMapCodes:
    """Return the results of ``encoded`` in main memory, packed; ``pooled`` (B, K) has the means of the feature maps.

    Raises ModelError, which fails the run, where the feature maps of an image are below zero.
    """
    levels, below_zero = to_host([codes, negative])
    if below_zero.any():
        raise ModelError("--outputs feature_maps: the network gave feature maps below zero; leave feature_maps out")
    height, width = map_hw
    return FeatureMapCodes(pack(levels, pooled, bits), (height, width), bits)


def refuse_unfit_network(network: CamNetwork) -> None:
    """Raise UsageError where the codec does not hold for the feature maps of ``network``, which is on the CPU.

    It holds where ``features`` are the means of the maps and where no map is ever below zero, which a forward pass of
    noise shows.
    """
    head, name = network.head, f"--outputs feature_maps: {network.name}"
    if isinstance(head, NormedHead):
        raise UsageError(f"{name} normalizes its averages; allowed: networks whose linear layer takes plain averages")
    if not isinstance(head, LinearHead | ConvHead) or head.pooling != "gap":
        raise UsageError(f"{name} has no global average pooling; allowed: networks that have")
    side = network.preprocessing.image_size
    noise = torch.randint(0, 256, (_PROBES, side, side, 3), generator=torch.Generator().manual_seed(_PROBE_SEED))
    with torch.no_grad():
        lowest = float(network.eval().features(noise.to(torch.uint8)).amin())
    if lowest < 0:
        raise UsageError(f"{name} has feature maps below zero; allowed: networks whose last maps follow a ReLU")
