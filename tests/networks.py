"""Networks with random values, and the questions that tests of networks and heads ask them."""

import torch
from torch import Tensor, nn

from pipeline.models import registry
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.heads import NetworkHead
from pipeline.models.networks.network import CamNetwork

SMALL = Architecture("vgg16_gap", classes=3, width=0.125)


def images(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def seeded(architecture: Architecture) -> nn.Module:
    torch.manual_seed(11)
    return registry.get(architecture.name).construct(architecture).eval()


def cut_by_default(architecture: Architecture, module: nn.Module) -> CamNetwork:
    """Return ``module`` cut into trunk and head, with the network's default preprocessing."""
    entry = registry.get(architecture.name)
    return entry.cam_network(architecture, module, entry.preprocessing)


def without_values(architecture: Architecture) -> nn.Module:
    return registry.get(architecture.name).without_values(architecture)


def state_of(architecture: Architecture) -> dict[str, Tensor]:
    return seeded(architecture).state_dict()


def logits_of_maps(head: NetworkHead, features: Tensor) -> Tensor:
    every = torch.arange(head.classes).expand(len(features), -1)
    return head.class_maps(features, every).mean((2, 3)) + head.bias_of(every)
