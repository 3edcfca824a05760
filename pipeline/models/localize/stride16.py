"""The last tensor of stride 16 of a trunk: where it is, and a trunk that hands it out beside the feature maps.

torchvision's feature extraction rewrites the trunk's graph, so that one forward pass returns both; there is no hook.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline.models.networks.found.tracing import NOT_TRACED, follows, with_plain_norms
from pipeline.models.networks.shapes import shapes_only

STRIDE = 16
_CHANNELS_LAST = " (channels last)"
"""End of the name of a tensor (B, h, w, K)."""
_LEAST_SHARE = 0.85
"""A tensor may have this share of the cells of S / 16: convolutions without padding lose some (AlexNet's 13 of 14)."""


class TrunkMaps(NamedTuple):
    """A trunk's results for B images in one forward pass."""

    features: Tensor
    """(B, K, h, w) the last feature maps, float32."""
    stride16: Tensor | None
    """(B, K', h', w') the last tensor of stride 16, in the trunk's number type; None where it was not requested."""


def find_stride16(trunk: nn.Module, side_px: int) -> str | None:
    """Return the name of the last tensor of ``trunk`` that has stride 16 at inputs of ``side_px``, found by its shape.

    Only shapes are computed. The name is that of ``get_graph_node_names``, with an addition for channels that stand
    last. None where the trunk has no such tensor or its graph can't be followed.
    """
    if not follows(trunk):
        return None
    trunk = with_plain_norms(trunk)
    errors = NOT_TRACED if getattr(trunk, "found", False) else (TraceError,)
    try:
        extractor = create_feature_extractor(trunk, get_graph_node_names(trunk)[1][1:])
        results = shapes_only(extractor, side_px)
    except errors:
        return None
    layout = getattr(trunk, "layout", None)
    channels_last = layout is not None and layout.form == "channels last"
    fitting = []
    for name, result in results.items():
        if isinstance(result, Tensor) and result.ndim == 4:
            if _has_stride(result.shape[2:], side_px):
                fitting.append(name)
            elif channels_last and _has_stride(result.shape[1:3], side_px):
                fitting.append(name + _CHANNELS_LAST)
    return fitting[-1] if fitting else None


def stride16_hw(trunk: nn.Module, name: str, side_px: int) -> tuple[int, int]:
    """Return (h, w) of the tensor ``name`` at square inputs of ``side_px``; only shapes are computed."""
    _, tensor = shapes_only(Stride16Trunk(trunk, name), side_px)
    return tensor.shape[2], tensor.shape[3]


def _has_stride(sizes: torch.Size, side_px: int) -> bool:
    cells = side_px / STRIDE
    return all(_LEAST_SHARE * cells <= size < cells + 1 for size in sizes)


class Stride16Trunk(nn.Module):
    """A trunk that returns the tensor of a given name beside its feature maps; it shares the trunk's weights."""

    def __init__(self, trunk: nn.Module, name: str) -> None:
        """``name`` is one that ``find_stride16`` returns; raises ValueError where the trunk has no such tensor."""
        super().__init__()
        trunk, self._channels_last = with_plain_norms(trunk), name.endswith(_CHANNELS_LAST)
        name = name.removesuffix(_CHANNELS_LAST)
        last = get_graph_node_names(trunk)[1][-1]
        self._same = name == last
        extractor = create_feature_extractor(trunk, {last: "features"} | ({} if self._same else {name: "stride16"}))
        self.rewritten = torch.fx.symbolic_trace(extractor)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature maps and the tensor of normalized ``inputs`` (B, 3, S, S)."""
        results = self.rewritten(inputs)
        tensor = results["features" if self._same else "stride16"]
        return results["features"], tensor.permute(0, 3, 1, 2) if self._channels_last else tensor
