"""The localization methods: how the map of a class is made from one forward pass of a network.

| method | map of class c | what is differentiated |
|---|---|---|
| cam | M_c = Σ_k w_k^c f_k (Zhou et al. 2016) | nothing |
| gradcam | ReLU(Σ_k mean_xy(∂S_c/∂f_k) f_k) (Selvaraju et al. 2017, arXiv 1610.02391) | the head |
| layercam | ReLU(Σ_k ReLU(∂S_c/∂f_k) f_k) (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943) | the head |
| backprop | max over colours of |∂S_c/∂input| (Simonyan et al. 2013, arXiv 1312.6034) | the whole network |
| regress | none: a head that was trained with boxes predicts one box an image (see ``box_head``) | nothing |

f_k are the trunk's last feature maps, w_k^c the weights of the head and S_c the logit of class c. The weighted sums of
cam are in ``networks/heads.py``, ``NetworkHead.class_maps``. Behind global average pooling over h·w cells the map of
gradcam is ReLU(M_c)/(h·w). Shapes: B images, n classes an image, K feature maps of h×w cells.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.localize.engine import Engine
from pipeline.models.networks.box_head import BoxHead
from pipeline.models.networks.heads import NetworkHead
from pipeline.models.networks.network import CamNetwork
from schemas.errors import ModelError
from schemas.options.annotate import Method

CELL_PX = 8
"""Side in pixels of a cell of a backprop map: 28×28 cells at 224."""
HEAD_VALUES = 2**25
"""A head is differentiated for at most this many values of feature maps at once, classes counted: 128 MB."""
TRUNK_PIXELS = {"cpu": 8 * 224**2, "cuda": 64 * 224**2}
"""backprop keeps the graph of at most this many input pixels: eight images of 224×224 take 0.3 GB with ResNet-50."""
FP16_SCALE = 1024.0
"""In float16 a gradient is computed this many times as large, because float16 rounds small gradients to zero."""


class ForwardPass(NamedTuple):
    """The result of one forward pass over B images, float32 on the network's device."""

    logits: Tensor
    """(B, C)."""
    pooled: Tensor
    """(B, K') the input vectors of the last linear layer."""
    features: Tensor
    """(B, K, h, w) the trunk's last feature maps."""
    stride16: Tensor | None = None
    """(B, K', h', w') the last tensor of stride 16, where the engine hands it out."""
    inputs: Tensor | None = None
    """(B, 3, S, S) the trunk's normalized input, only where ``features`` keep the autograd graph back to the input."""


class Localization(ABC):
    """One localization method: a forward pass, whose logits choose the classes, then the maps of these classes.

    Several threads may use one object at the same time.
    """

    exact = False
    """Whether the method needs a head that has exact class activation maps."""

    def __init__(self, engine: Engine, head: NetworkHead, box_head: BoxHead | None = None) -> None:
        """``head``, and ``box_head`` where the network has one, are on the engine's device."""
        self._engine, self._head, self._box_head = engine, head, box_head

    def images_at_once(self, image_pixels: int) -> int | None:
        """Return how many images one call of ``forward`` may take, so that memory suffices; None: any number.

        ``image_pixels``: pixels of one image's inputs, all its views together.
        """
        return None

    def forward(self, pixels: Tensor) -> ForwardPass:
        """Run the network on ``pixels``, (B, S, S, 3) uint8 RGB on its device."""
        features, stride16 = self._engine.trunk_maps(pixels)
        logits, pooled = self._head(features)
        return ForwardPass(logits, pooled, features, stride16)

    @abstractmethod
    def maps(self, forward_pass: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return the maps (B, n, h, w) float32 of ``class_ids`` (B, n) int64.

        The maps of an image whose features hold a NaN are undefined; those of the other images are not affected.
        """

    def regressed(self, forward_pass: ForwardPass) -> Tensor | None:
        """Return a box (B, 4) for each image, in shares of the input's sides (see ``box_head``); else None."""
        return None

    @classmethod
    def map_hw(cls, network: CamNetwork, side_px: int) -> tuple[int, int]:
        """Return (h, w) of the maps of a square input of ``side_px``.

        Raises RuntimeError, PyTorch's own, where the input is too small for the trunk.
        """
        return network.map_size(side_px)


class Cam(Localization):
    """Class activation maps: M_c = Σ_k w_k^c f_k, whose mean plus the bias is the logit of class c."""

    exact = True

    def maps(self, forward_pass: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return M_c (B, n, h, w)."""
        return self._head.class_maps(forward_pass.features, class_ids)


class _HeadGradients(Localization):
    """Weighs the feature maps by the gradient of the logit with respect to them; the trunk is not differentiated."""

    def maps(self, forward_pass: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return ReLU(Σ_k α_k f_k), which is nowhere negative."""
        features = forward_pass.features
        classes_at_once = max(1, HEAD_VALUES // features.numel())
        parts = []
        for ids in torch.split(class_ids, classes_at_once, dim=1):
            gradients = head_gradients(self._head, features, ids)
            parts.append(F.relu((self._weights(gradients) * features[:, None]).sum(2)))
        return torch.cat(parts, dim=1)

    @staticmethod
    @abstractmethod
    def _weights(gradients: Tensor) -> Tensor:
        """Return α, (B, n, K, h, w) or (B, n, K, 1, 1), of ``gradients`` (B, n, K, h, w)."""


class GradCam(_HeadGradients):
    """Weighs each feature map by the mean of its gradient over all cells."""

    @staticmethod
    def _weights(gradients: Tensor) -> Tensor:
        return gradients.mean((3, 4), keepdim=True)


class LayerCam(_HeadGradients):
    """Weighs each cell of each feature map by the gradient in that cell, where the gradient is positive."""

    @staticmethod
    def _weights(gradients: Tensor) -> Tensor:
        return F.relu(gradients)


class Backprop(Localization):
    """The magnitude of the gradient of the logit with respect to the network's normalized input.

    The trunk runs forward once and keeps its graph. The head runs once more, where possible for the n classes alone.
    Then there is one backward pass for each class.
    """

    def images_at_once(self, image_pixels: int) -> int:
        """Return the images whose graphs fit in TRUNK_PIXELS, at least 1."""
        return max(1, TRUNK_PIXELS[self._engine.device.type] // image_pixels)

    def forward(self, pixels: Tensor) -> ForwardPass:
        """Run the network on ``pixels`` and keep the graph of the trunk."""
        inputs = self._engine.inputs(pixels).requires_grad_()
        with torch.enable_grad():
            features, stride16 = self._engine.trunk_maps_of(inputs)
        logits, pooled = self._head(features.detach())
        stride16 = None if stride16 is None else stride16.detach()
        return ForwardPass(logits, pooled, features, stride16, inputs)

    def maps(self, forward_pass: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return the largest |∂S_c/∂input| of the three colours, averaged over the pixels of each cell.

        The call frees the graph: a second call with the same ``forward_pass`` raises RuntimeError.
        """
        inputs = forward_pass.inputs
        assert inputs is not None
        with torch.enable_grad():
            logits = self._head.logits_of(forward_pass.features, class_ids).sum(0).unbind()
        scale = FP16_SCALE if inputs.dtype == torch.float16 else 1.0
        magnitudes = []
        for number, logit in enumerate(logits, 1):
            slope = logit.new_tensor(scale)
            (gradient,) = torch.autograd.grad(logit, inputs, slope, retain_graph=number < len(logits))
            magnitudes.append(gradient.abs().amax(1).float() / scale)
        return F.adaptive_avg_pool2d(torch.stack(magnitudes, dim=1), _cells(inputs.shape[2]))

    @classmethod
    def map_hw(cls, network: CamNetwork, side_px: int) -> tuple[int, int]:
        """Return one cell for every CELL_PX pixels of each side, rounded to whole cells, at least one."""
        network.map_size(side_px)
        return _cells(side_px)


class Regress(Localization):
    """One box an image, predicted by a head that was trained with boxes; there are no maps and only one view."""

    exact = True

    def __init__(self, engine: Engine, head: NetworkHead, box_head: BoxHead | None = None) -> None:
        """Raise ModelError where the network has no box head; the error fails the run."""
        super().__init__(engine, head, box_head)
        if box_head is None:
            raise ModelError(NO_BOX_HEAD)
        self._boxes = box_head

    def maps(self, forward_pass: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return ones (B, n, h, w): finite placeholders. No box is cut from them, and no table stores them."""
        return forward_pass.features.new_ones(()).expand(*class_ids.shape, *forward_pass.features.shape[2:])

    def regressed(self, forward_pass: ForwardPass) -> Tensor:
        """Return the boxes (B, 4) of the box head."""
        boxes: Tensor = self._boxes(forward_pass.features)
        return boxes


NO_BOX_HEAD = (
    "--method regress: these weights have no box head; allowed: weights of `camlake train --supervision boxes`, or"
    " another --method"
)
METHODS: dict[Method, type[Localization]] = {
    "cam": Cam,
    "gradcam": GradCam,
    "layercam": LayerCam,
    "backprop": Backprop,
    "regress": Regress,
}


def head_gradients(head: NetworkHead, features: Tensor, class_ids: Tensor) -> Tensor:
    """Return the gradients ∂S_c/∂f (B, n, K, h, w) for ``features`` (B, K, h, w) and ``class_ids`` (B, n).

    The head runs forward and backward once, on a batch that repeats the features of each image for each of its classes.
    """
    n_images, n_classes = class_ids.shape
    repeated = features.detach().repeat_interleave(n_classes, 0).requires_grad_()
    with torch.enable_grad():
        total = head.logits_of(repeated, class_ids.reshape(-1, 1)).sum()
    (gradients,) = torch.autograd.grad(total, repeated)
    return gradients.view(n_images, n_classes, *features.shape[1:])


def _cells(side_px: int) -> tuple[int, int]:
    cells = max(1, round(side_px / CELL_PX))
    return cells, cells
