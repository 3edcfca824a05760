"""The first test of every found network: the mean of each class's map plus its bias is the network's own logit."""

import torch
from torch import nn

from pipeline.models.networks.found.finding import TOLERANCE
from pipeline.models.networks.network import CamNetwork
from schemas.errors import ModelError


@torch.no_grad()
def check_identity(network: CamNetwork, module: nn.Module, *, maps: bool) -> None:
    """Raise ModelError, with the difference seen, where ``network`` is not what ``module`` computes on a random input.

    ``module`` is the uncut network in evaluation mode, whose layers ``network`` shares. ``maps`` false compares the
    logits alone, for networks without exact class activation maps.
    """
    side = network.preprocessing.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(9))
    try:
        expected, features = module(pixels), network.trunk(pixels)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{network.name} can't take inputs of {side} pixels a side: {reason}") from error
    if maps:
        every = torch.arange(network.classes)[None]
        found = network.head.class_maps(features, every).mean((2, 3)) + network.head.bias_of(every)
    else:
        found = network.head(features).logits
    difference, size = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * size:
        raise ModelError(
            f"{network.name}: the mean of a class's map and its bias differ from the logit by up to {difference:.3g},"
            f" where logits reach {size:.3g}; name its layers with --feature-layer and --classifier-layer"
        )
