"""How a network's maps of a class are made: exact class activation maps, or gradients of the class's logit.

| method | map of class c | what is differentiated |
|---|---|---|
| cam | M_c = Σ_k w_k^c f_k (Zhou et al. 2016) | nothing |
| gradcam | ReLU(Σ_k mean_xy(∂S_c/∂f_k) f_k) (Selvaraju et al. 2017, arXiv 1610.02391) | the head |
| layercam | ReLU(Σ_k ReLU(∂S_c/∂f_k) f_k) (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943) | the head |
| regress | none: a head trained with boxes tells a box (see ``box_head``) | nothing |
| backprop | max over colours of |∂S_c/∂input| (Simonyan et al. 2013, arXiv 1312.6034) | all of the network |

f_k are the trunk's last maps, S_c is the logit. Behind global average pooling, over h·w cells, gradcam is
ReLU(M_c)/(h·w).
Shapes: B images, n classes of each, K feature maps of h×w cells.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.localize.engine import Engine
from pipeline.models.networks.box_head import BoxHead
from pipeline.models.networks.heads import Head
from pipeline.models.networks.network import CamNetwork
from schemas.annotate import Method
from schemas.errors import ModelError

CELL_PX = 8
"""Side in pixels of a cell of a backprop map: 28×28 cells at 224."""
HEAD_VALUES = 2**25
"""Values of feature maps, repeated for each class, that a head is differentiated for at once: 128 MB."""
TRUNK_PIXELS = {"cpu": 8 * 224**2, "cuda": 64 * 224**2}
"""Pixels of the inputs that a trunk keeps a graph of at once: of eight images of 224×224 ResNet-50 keeps 0.3 GB."""

FP16_SCALE = 1024.0
"""What a logit's slope is multiplied by on its way back through float16, which rounds small gradients to zero."""


class ForwardPass(NamedTuple):
    """What the network makes of B images."""

    logits: Tensor
    """(B, C)."""
    pooled: Tensor
    """(B, K') the vectors that the last layer saw."""
    features: Tensor
    """(B, K, h, w)."""
    inputs: Tensor | None = None
    """(B, 3, S, S) what the trunk took, where ``features`` keep the graph that leads back to it."""


class Localization(ABC):
    """Makes maps of chosen classes, after a look that tells which ones to choose. Threads may call it side by side."""

    exact = False
    """Whether it needs a head that has exact class activation maps."""

    def __init__(self, engine: Engine, head: Head, box_head: BoxHead | None = None) -> None:
        """``head``, and ``box_head`` where the network has one, are on the engine's device."""
        self._engine, self._head, self._box_head = engine, head, box_head

    def images_at_once(self, image_pixels: int) -> int | None:
        """Return how many images, each of so many pixels in all of its views, to look at before maps are asked for.

        None: any number. More would keep too much in memory.
        """
        return None

    def look(self, pixels: Tensor) -> ForwardPass:
        """Return what the network makes of ``pixels`` (B, S, S, 3) uint8 on its device."""
        features = self._engine(pixels)
        logits, pooled = self._head(features)
        return ForwardPass(logits, pooled, features)

    @abstractmethod
    def maps(self, look: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return the maps (B, n, h, w) float32 of ``class_ids`` (B, n); of an image with a NaN they may be anything."""

    def told(self, look: ForwardPass) -> Tensor | None:
        """Return the boxes (B, 4) of whole images, as ``box_head`` has them; None where maps are cut into boxes."""
        return None

    @classmethod
    def map_hw(cls, network: CamNetwork, side_px: int) -> tuple[int, int]:
        """Return (h, w) of the maps of a square input; raises RuntimeError where it is too small for the trunk."""
        return network.map_size(side_px)


class Cam(Localization):
    """The weighted sums of feature maps that the logits are the means of."""

    exact = True

    def maps(self, look: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return M_c."""
        return self._head.class_maps(look.features, class_ids)


class _HeadGradients(Localization):
    """Weighs the feature maps by the logit's gradient in them; the trunk runs once and is not differentiated."""

    def maps(self, look: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return ReLU(Σ_k α_k f_k), nowhere negative."""
        features = look.features
        at_once = max(1, HEAD_VALUES // features.numel())
        parts = []
        for ids in torch.split(class_ids, at_once, dim=1):
            gradients = head_gradients(self._head, features, ids)
            parts.append(F.relu((self._weights(gradients) * features[:, None]).sum(2)))
        return torch.cat(parts, dim=1)

    @staticmethod
    @abstractmethod
    def _weights(gradients: Tensor) -> Tensor:
        """Return α of ``gradients`` (B, n, K, h, w), of that shape or with ones for h and w."""


class GradCam(_HeadGradients):
    """Weighs each feature map by the mean of its gradient."""

    @staticmethod
    def _weights(gradients: Tensor) -> Tensor:
        return gradients.mean((3, 4), keepdim=True)


class LayerCam(_HeadGradients):
    """Weighs each cell of each feature map by its own gradient, where that is positive."""

    @staticmethod
    def _weights(gradients: Tensor) -> Tensor:
        return F.relu(gradients)


class Backprop(Localization):
    """The size of the logit's gradient in the network's input, which is the normalized picture.

    One pass forward, whose graph is kept, and one backward for each of the n classes; the head runs once more, where
    it can for those classes alone.
    """

    def images_at_once(self, image_pixels: int) -> int:
        """Return how many graphs are kept; at least one image's."""
        return max(1, TRUNK_PIXELS[self._engine.device.type] // image_pixels)

    def look(self, pixels: Tensor) -> ForwardPass:
        """Return what the network makes of ``pixels``, and the graph."""
        inputs = self._engine.inputs(pixels).requires_grad_()
        with torch.enable_grad():
            features = self._engine.features(inputs)
        logits, pooled = self._head(features.detach())
        return ForwardPass(logits, pooled, features, inputs)

    def maps(self, look: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return the greatest |∂S_c/∂input| over the colours, averaged over each of the map's cells; frees the graph.

        Raises RuntimeError for a look that was asked before.
        """
        inputs = look.inputs
        assert inputs is not None
        with torch.enable_grad():
            logits = self._head.logits_of(look.features, class_ids).sum(0).unbind()
        scale = FP16_SCALE if inputs.dtype == torch.float16 else 1.0
        found = []
        for place, logit in enumerate(logits, 1):
            slope = logit.new_tensor(scale)
            (gradient,) = torch.autograd.grad(logit, inputs, slope, retain_graph=place < len(logits))
            found.append(gradient.abs().amax(1).float() / scale)
        return F.adaptive_avg_pool2d(torch.stack(found, dim=1), _cells(inputs.shape[2]))

    @classmethod
    def map_hw(cls, network: CamNetwork, side_px: int) -> tuple[int, int]:
        """Return a cell for every CELL_PX pixels of each side, rounded to whole cells."""
        network.map_size(side_px)
        return _cells(side_px)


class Regress(Localization):
    """The box that a head learned from boxes, for whatever class; there is one look at the picture and no map."""

    exact = True

    def __init__(self, engine: Engine, head: Head, box_head: BoxHead | None = None) -> None:
        """Raise ModelError where the network has no box head."""
        super().__init__(engine, head, box_head)
        if box_head is None:
            raise ModelError(NO_BOX_HEAD)
        self._boxes = box_head

    def maps(self, look: ForwardPass, class_ids: Tensor) -> Tensor:
        """Return ones, which stand in the places of maps and say nothing."""
        return look.features.new_ones(()).expand(*class_ids.shape, *look.features.shape[2:])

    def told(self, look: ForwardPass) -> Tensor:
        """Return the head's boxes."""
        found: Tensor = self._boxes(look.features)
        return found


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


def head_gradients(head: Head, features: Tensor, class_ids: Tensor) -> Tensor:
    """Return ∂S_c/∂f (B, n, K, h, w) of ``features`` (B, K, h, w), for the n ``class_ids`` (B, n) of each image.

    One pass through the head forward and back, with each image's features once for each of its classes.
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
