"""Networks built from an architecture: with random values, with none, cut into trunk and head."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.box_head import NAME as BOX_HEAD
from pipeline.models.networks.box_head import add_box_head, has_box_head
from pipeline.models.networks.designs import DESIGNS
from pipeline.models.networks.families import cut
from pipeline.models.networks.network import CamNetwork, Preprocessing
from pipeline.models.registry import builder_of, family_of


def cam_network(architecture: Architecture, module: nn.Module, preprocessing: Preprocessing) -> CamNetwork:
    """Return ``module``, a network that ``build`` or ``build_network`` made, cut into trunk and head.

    It shares the module's layers, so a module in training can be asked for maps at any time. The trunk of a network
    that only classifies ends in the maps in front of its fully connected layers, and its head has no class maps.
    """
    trunk, head = cut(module, family_of(architecture.name, exact_maps=False, pooling=architecture.pooling))
    return CamNetwork(architecture.name, trunk, head, preprocessing, getattr(module, BOX_HEAD, None))


def with_box_head(architecture: Architecture, module: nn.Module) -> nn.Module:
    """Return ``module`` with a new box head, which ``cam_network`` then gives too.

    Raises ModelError for a network that only classifies.
    """
    return add_box_head(module, cut(module, family_of(architecture.name, pooling=architecture.pooling))[1])


def build(architecture: Architecture) -> nn.Module:
    """Return the network with random values from torch's generator: normalized images (B, 3, H, W) to logits (B, C)."""
    if architecture.name in DESIGNS:
        return DESIGNS[architecture.name].build(architecture)
    options = dict(family_of(architecture.name).options)
    return builder_of(architecture.name)(**options, num_classes=architecture.classes)


class _EmptyTensors(TorchFunctionMode):
    """Lets layers allocate no memory for their weights; small tables that networks compute from stay real."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, on the meta device where it makes a tensor of a given shape."""
        place = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **{**(kwargs or {}), **place})


def without_values(architecture: Architecture) -> nn.Module:
    """Return the module with parameters on the meta device: right shapes in milliseconds, even of 600 M parameters."""
    with _EmptyTensors():
        return build(architecture)


def shaped_like(architecture: Architecture, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the module without values, with a box head where ``state`` has one and the network can have one."""
    module = without_values(architecture)
    boxed = has_box_head(state) and not family_of(architecture.name, exact_maps=False).refusal
    return with_box_head(architecture, module) if boxed else module
