"""Heads of found networks that are more than one linear layer: affine in the averages, or without exact maps."""

import torch
from torch import Tensor, nn

from pipeline.models.networks.heads import HeadOutput, LinearHead, NetworkHead
from schemas.errors import ModelError


class _Affine(nn.Module):
    """Layers that are affine in the averages, in the form of the one linear layer that they amount to."""

    def __init__(self, behind: nn.Module, channels: int, classes: int) -> None:
        """``behind`` turns maps (B, K, h, w) into logits (B, C), by way of the maps' averages."""
        super().__init__()
        self.behind = behind
        self.in_features, self.out_features = channels, classes
        self._known: tuple[object, Tensor, Tensor] | None = None

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the logits (B, C) of averages (B, K), by the layers themselves."""
        logits: Tensor = self.behind(vectors[:, :, None, None])
        return logits

    @property
    def weight(self) -> Tensor:
        """(C, K): the change of each logit with each average."""
        return self._values()[0]

    @property
    def bias(self) -> Tensor:
        """(C,): the logits of averages that are all zero."""
        return self._values()[1]

    def _values(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias, calculated anew when a value of the layers has changed."""
        tensors = [*self.behind.parameters(), *self.behind.buffers()]
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if self._known is None or self._known[0] != state:
            with torch.no_grad():
                units = torch.eye(self.in_features, device=tensors[0].device, dtype=tensors[0].dtype)
                bias = self(torch.zeros_like(units[:1]))[0]
                self._known = state, (self(units) - bias).T.contiguous(), bias
        return self._known[1], self._known[2]


class AffineHead(LinearHead):
    """Global average pooling, then layers that together are affine in the averages p.

    Such layers are a batch normalization before the linear layer, or two linear layers whose logits are averaged. With
    g(p) for their logits and unit vectors e_k, exactly

        M_c = Σ_k w_k^c f_k,   w_k^c = g_c(e_k) − g_c(0),   bias_c = g_c(0)
    """

    def __init__(self, behind: nn.Module, channels: int, classes: int) -> None:
        """``behind`` turns maps (B, K, h, w) into logits (B, C), by way of the maps' averages."""
        affine = _Affine(behind, channels, classes)
        super().__init__(affine)  # type: ignore[arg-type]


class OpaqueHead(NetworkHead):
    """The network's own layers behind its last maps; they give logits but no exact class maps.

    ``HeadOutput.pooled`` has the averages of the maps, which these layers need not take.
    """

    def __init__(self, behind: nn.Module, channels: int, classes: int) -> None:
        """``behind`` turns maps (B, K, h, w) into logits (B, C)."""
        super().__init__()
        self.behind = behind
        self.channels, self.classes = channels, classes

    def forward(self, features: Tensor) -> HeadOutput:
        """Return the logits and the averages of the feature maps."""
        return HeadOutput(self.behind(features), features.mean((2, 3)))

    def class_maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Raise ModelError: there are no class maps."""
        raise ModelError("the layers behind the maps have no exact class activation map")

    def bias_of(self, class_ids: Tensor) -> Tensor:
        """Raise ModelError: there are no class maps whose means could differ from the logits."""
        raise ModelError("the layers behind the maps have no exact class activation map")
