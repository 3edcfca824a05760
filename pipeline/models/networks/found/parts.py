"""The parts into which a found network is taken apart: what makes its last features, and what stands behind them.

All of them share the layers of the network.
"""

import threading
from typing import Any

from torch import Tensor, nn

from pipeline.models.networks.found.feature_layout import Layout


class ForwardFeatures(nn.Module):
    """The first half of a network that has ``forward_features``, as timm's have."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the last features of normalized images (B, 3, H, W)."""
        features: Tensor = self.network.forward_features(images)
        return features


class ForwardHead(nn.Module):
    """The second half of such a network."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) of the last features."""
        logits: Tensor = self.network.forward_head(features)
        return logits


class LayerOutput(nn.Module):
    """Runs a network up to one of its layers, whose result it returns; the layers behind it do not run."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        """``layer`` is the dotted name of a layer that runs once in each forward pass and returns a tensor."""
        super().__init__()
        self.network = network
        self._layer = layer
        network.get_submodule(layer).register_forward_hook(_raise_at_end)

    def forward(self, images: Tensor) -> Tensor:
        """Return the layer's result for normalized images (B, 3, H, W)."""
        _CAPTURING.layer = self.network.get_submodule(self._layer)
        try:
            self.network(images)
        except _Reached as reached:
            return reached.result
        finally:
            _CAPTURING.layer = None
        raise ValueError(f"the layer {self._layer} does not run in the forward pass")


class _Capturing(threading.local):
    """The layer at whose end the thread's forward pass stops; several threads may run one network."""

    layer: nn.Module | None = None


_CAPTURING = _Capturing()


class _Reached(Exception):  # noqa: N818 - it reports no error
    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result


def _raise_at_end(layer: nn.Module, _inputs: object, result: Tensor) -> None:
    if _CAPTURING.layer is layer:
        raise _Reached(result)


class FoundTrunk(nn.Module):
    """The part of a found network that ends in its last features, as maps (B, K, h, w)."""

    found = True
    """It may hold anything: tensors that are no buffers, tables for one size of the input."""

    def __init__(self, features: nn.Module, layout: Layout, *, traces: bool) -> None:
        """``traces``: whether torch.fx can follow the network's forward pass."""
        super().__init__()
        self.features = features
        self.layout = layout
        self.traces = traces

    def forward(self, images: Tensor) -> Tensor:
        """Return the maps of normalized images (B, 3, H, W)."""
        return self.layout.maps(self.features(images))


class BehindMaps(nn.Module):
    """The part of a found network behind its last features; it takes them as maps."""

    def __init__(self, tail: nn.Module, layout: Layout) -> None:
        """``tail`` turns features in the network's own arrangement, ``layout``, into logits."""
        super().__init__()
        self.tail = tail
        self.layout = layout

    def forward(self, maps: Tensor) -> Tensor:
        """Return the logits (B, C) of maps (B, K, h, w)."""
        logits: Tensor = self.tail(self.layout.features(maps))
        return logits
