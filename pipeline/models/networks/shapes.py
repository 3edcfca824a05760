"""Runs a network without values: the shapes of its results in milliseconds, whatever its size."""

from typing import Any

import torch
from torch import nn


def shapes_only(module: nn.Module, side_px: int) -> Any:
    """Return the result of ``module`` for no square inputs, all of ``side_px`` pixels: tensors (0, …) without values.

    PyTorch raises RuntimeError where such inputs are too small for the module.

    A batch of no images costs nothing, and the layers' weights are single numbers that look like whole tensors. A
    module that can't lay out an empty batch runs on the meta device, for one image: many operations there import
    torch._dynamo, which takes seconds.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    try:
        hollow = {name: torch.zeros((), dtype=one.dtype).expand(one.shape) for name, one in tensors.items()}
        return torch.func.functional_call(module, hollow, (torch.empty(0, 3, side_px, side_px),))
    except RuntimeError:
        shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
        return torch.func.functional_call(module, shapes, (torch.empty(1, 3, side_px, side_px, device="meta"),))
