"""Which trunks torch.fx can follow, and the form of a trunk in which it finds the layers that can be folded."""

import copy
import io
from contextlib import redirect_stderr

from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.proxy import TraceError

NOT_TRACED = (
    TraceError,
    TypeError,
    ValueError,
    RuntimeError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
)
"""Errors that a forward pass raises when it meets torch.fx's stand-ins in the place of tensors and sizes."""


def follows(trunk: nn.Module) -> bool:
    """Return whether torch.fx is known to follow the forward pass of ``trunk``; those with an entry all do."""
    return bool(getattr(trunk, "traces", True))


def traces(trunk: nn.Module, images: Tensor) -> bool:
    """Return whether torch.fx follows the forward pass of ``trunk`` and its graph gives the same result."""
    try:
        traced = symbolic_trace(with_plain_norms(trunk))
        with redirect_stderr(io.StringIO()):  # A module of torch.fx prints a traceback before it raises.
            found, expected = traced(images), trunk(images)
    except NOT_TRACED:
        return False
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())


def with_plain_norms(trunk: nn.Module) -> nn.Module:
    """Return ``trunk`` with plain batch norms, which can be folded, in the place of norms with an activation.

    timm's batch norms hold an activation and follow it in one layer. The result is a copy that shares the weights, or
    ``trunk`` itself where it has no such layer.
    """
    if not any(_acts(part) for part in trunk.modules()):
        return trunk
    shared = {id(tensor): tensor for tensor in (*trunk.parameters(), *trunk.buffers())}
    found: nn.Module = copy.deepcopy(trunk, shared)
    for part in list(found.modules()):
        for name, child in part.named_children():
            if _acts(child):
                setattr(part, name, _plain(child))
    return found


def _acts(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d) and isinstance(getattr(layer, "act", None), nn.Module)


def _plain(layer: nn.Module) -> nn.Sequential:
    assert isinstance(layer, nn.BatchNorm2d)
    norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    for kind in ("_parameters", "_buffers"):
        getattr(norm, kind).update(getattr(layer, kind))
    norm.training = layer.training
    between = getattr(layer, "drop", None)
    act = layer.get_submodule("act")
    return nn.Sequential(norm, between, act) if isinstance(between, nn.Module) else nn.Sequential(norm, act)
