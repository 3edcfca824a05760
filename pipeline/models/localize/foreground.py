"""A network's figure/ground direction as a file: its values, the weights it belongs to, and the rule for its boxes.

A file is a safetensors file with μ and v and a card, as JSON under the key ``camlake.foreground`` of its header. Files
for some published weights are installed with camlake, in ``pipeline/models/weights/foreground_*.safetensors``. They
are found by the digest of the weights' values, which does not depend on the file of the weights.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor

import pipeline.models.weights
from pipeline.arrays.figure_ground import fuse, project
from pipeline.models.localize.stride16 import find_stride16
from pipeline.models.networks.network import CamNetwork
from schemas.errors import ModelError
from schemas.options.box_rules import AUTO_THRESHOLD, RIGHT_SHARE, Combination

CARD_KEY = "camlake.foreground"
"""Key of the card in the file's metadata."""
SHIPPED = Path(pipeline.models.weights.__path__[0])
"""The folder of the installed files.

These commands made them. R is a folder with 300 photographs of ILSVRC-2012 val and torchvision's weights, S has 200
rendered scenes of ``write_corpus`` with seed 77. N·P was the better rule for MobileNetV2 on 914 other photographs:

    camlake foreground R/ilsvrc300/images --model mobilenet_v2 --weights R/weights/mobilenet_v2.safetensors \\
        --truth R/ilsvrc300/annotations.csv --combination product --out foreground_mobilenet_v2.safetensors
    camlake foreground R/ilsvrc300/images --model squeezenet1_1 --weights R/weights/squeezenet1_1.safetensors \\
        --truth R/ilsvrc300/annotations.csv --out foreground_squeezenet1_1.safetensors
    camlake foreground R/ilsvrc300/images --model efficientnet_lite0 \\
        --truth R/ilsvrc300/annotations.csv --out foreground_efficientnet_lite0.safetensors
    camlake foreground S/images --model camlake_demo --images 200 --truth S/truth.csv \\
        --out foreground_camlake_demo.safetensors
"""


@dataclass(frozen=True)
class ForegroundCard:
    """The facts that are needed to use a direction."""

    network: str
    """Name of the network."""
    weights: str
    """``values_sha256`` of the network's state."""
    tensor: str
    """Name of the tensor, as ``find_stride16`` returns it."""
    grid_hw: tuple[int, int]
    """Rows and columns of the tensor at the input size that the direction was learned with."""
    combination: Combination = "sumprod"
    """The formula that fuses a class map and a figure/ground map."""
    threshold: float = AUTO_THRESHOLD
    """Threshold of ``--box-rule auto`` for the fused map, in (0, 1)."""
    right_share: float = RIGHT_SHARE
    """Share of boxes of a true class that are right, in (0, 1]; it is measured if truth was given."""
    data: str = ""
    """Digest of the images that the direction was learned from."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Figures of the learning and of the check against truth, in JSON's types."""


_CARD = TypeAdapter(ForegroundCard)


@dataclass(frozen=True, eq=False)
class Foreground:
    """A direction with its card; the tensors are on one device."""

    card: ForegroundCard
    mean: Tensor
    """(K,) float32."""
    vector: Tensor
    """(K,) float32."""

    @cached_property
    def digest(self) -> str:
        """SHA-256, 64 hex digits, of the card and the values."""
        found = hashlib.sha256(json.dumps(_CARD.dump_python(self.card, mode="json"), sort_keys=True).encode())
        for tensor in (self.mean, self.vector):
            found.update(np.ascontiguousarray(tensor.cpu().numpy(), "<f4").tobytes())
        return found.hexdigest()

    def to(self, device: torch.device | str) -> "Foreground":
        """Return the direction with its tensors on ``device``."""
        return Foreground(self.card, self.mean.to(device), self.vector.to(device))

    def maps(self, stride16: Tensor) -> Tensor:
        """Return the figure/ground maps (B, h, w) float32 of the network's stride-16 tensors (B, K, h, w)."""
        return project(stride16, self.mean, self.vector)

    def fused(self, class_maps: Tensor, figure: Tensor) -> Tensor:
        """Return class maps (B, n, h, w) and figure/ground maps (B, h', w') as fused maps (B, n, H, W) in [0, 1]."""
        return fuse(class_maps, figure, self.card.combination)


def foreground_bytes(foreground: Foreground) -> bytes:
    """Return the file of a direction."""
    tensors = {"mean": foreground.mean.cpu().contiguous(), "vector": foreground.vector.cpu().contiguous()}
    metadata = {CARD_KEY: _CARD.dump_json(foreground.card).decode()}
    content: bytes = safetensors.torch.save(tensors, metadata=metadata)
    return content


def foreground_of(content: bytes, name: str) -> Foreground:
    """Return the direction in a file's bytes; raises ModelError, which names the file ``name``, for other content."""
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        card = _CARD.validate_json(header["__metadata__"][CARD_KEY])
        mean, vector = tensors["mean"], tensors["vector"]
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{name} is no whole file of `camlake foreground`") from error
    values = torch.stack([mean, vector]) if mean.ndim == 1 and mean.shape == vector.shape else None
    if values is None or values.dtype != torch.float32 or not values.isfinite().all() or not vector.any():
        raise ModelError(f"{name}: its vectors can't be meant; learn them anew with `camlake foreground`")
    if not (0 < card.threshold < 1 and 0 < card.right_share <= 1):
        raise ModelError(
            f"{name}: threshold {card.threshold:g}, share of right boxes {card.right_share:g}; allowed: between 0 and 1"
        )
    return Foreground(card, mean, vector)


def values_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256, 64 hex digits, of the names and values of a state dict's floating-point tensors."""
    found = hashlib.sha256()
    for name in sorted(name for name, tensor in state.items() if tensor.is_floating_point()):
        found.update(f"{name} {tuple(state[name].shape)}\n".encode())
        found.update(np.ascontiguousarray(state[name].detach().cpu().float().numpy(), "<f4").tobytes())
    return found.hexdigest()


def refuse_unfit(foreground: Foreground, network: CamNetwork, state: Mapping[str, Tensor], name: str) -> None:
    """Raise ModelError, which names the file ``name``, where the direction is for another network or other weights."""
    card = foreground.card
    if card.network != network.name:
        raise ModelError(f"{name} was learned of {card.network}, not of {network.name}; learn it anew")
    if card.weights != values_sha256(state):
        raise ModelError(f"{name} was learned of {card.network} with other weights; learn it anew")


def shipped_foreground(network: CamNetwork, state: Mapping[str, Tensor]) -> Foreground | None:
    """Return the installed direction of a network with the values of ``state``; None where none is installed."""
    of_network = [one for one in _shipped() if one.card.network == network.name]
    digest = values_sha256(state) if of_network else ""
    return next((one for one in of_network if one.card.weights == digest), None)


@cache
def _shipped() -> tuple[Foreground, ...]:
    files = sorted(SHIPPED.glob("foreground_*.safetensors"))
    return tuple(foreground_of(file.read_bytes(), file.name) for file in files)


def stride16_name(network: CamNetwork) -> str | None:
    """Return the name of the network's last tensor of stride 16, from the registry entry or else found by its shape.

    Returns None where the network has no such tensor.
    """
    return network.stride16 or find_stride16(network.trunk, network.preprocessing.image_size)
