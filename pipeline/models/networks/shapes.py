"""Runs a network without values: the shapes of its results in milliseconds, whatever its size."""

import io
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import nn


def shapes_only(module: nn.Module, side_px: int) -> Any:
    """Return the result of ``module`` for square inputs of ``side_px`` pixels, for its shapes: no value means anything.

    Raises RuntimeError where such inputs do not suit the module.

    A batch of no images costs nothing, and the layers' weights are then single numbers that look like whole tensors. A
    module that can't lay out an empty batch runs on the meta device, for one image: many operations there import
    torch._dynamo, which takes seconds. A network whose structure was found (``found``) may have tensors that are
    neither parameters nor buffers; it runs for one black image.
    """
    ways = [_for_no_image, _on_meta, *([_for_a_black_image] if getattr(module, "found", False) else [])]
    failures = []
    for way in ways:
        try:
            with redirect_stderr(io.StringIO()):  # A module of torch.fx prints a traceback before it raises.
                return way(module, side_px)
        except (RuntimeError, AssertionError, ValueError, LookupError, ArithmeticError, TypeError) as error:
            failures.append(error)
    last = failures[-1]
    if isinstance(last, RuntimeError):
        raise last
    raise RuntimeError(f"an input of {side_px} pixels does not suit the network") from last


def _for_no_image(module: nn.Module, side_px: int) -> Any:
    hollow = {name: torch.zeros((), dtype=one.dtype).expand(one.shape) for name, one in _tensors(module).items()}
    return torch.func.functional_call(module, hollow, (torch.empty(0, 3, side_px, side_px),))


def _on_meta(module: nn.Module, side_px: int) -> Any:
    shapes = {name: tensor.to("meta") for name, tensor in _tensors(module).items()}
    return torch.func.functional_call(module, shapes, (torch.empty(1, 3, side_px, side_px, device="meta"),))


def _for_a_black_image(module: nn.Module, side_px: int) -> Any:
    with torch.no_grad():
        return module(torch.zeros(1, 3, side_px, side_px))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())
