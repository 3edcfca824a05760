"""The head that learns from boxes: one linear layer from the feature maps to one box an image, for all classes.

A network with a box head measures what is lost by learning from labels alone. The box head stands beside the
classifier, which stays unchanged. It takes the feature maps before they are pooled over the whole image, because
pooling discards positions. With maps averaged to G×G cells, f of shape (K, G, G),

    (t_x, t_y, t_w, t_h) = Σ_kij W_kij f_kij / G² + b,    centre and size of the box = sigmoid(t)

All classes share one box, which is learned from all images together (single-class regression in Simonyan & Zisserman
2015, arXiv 1409.1556; Zhang et al. 2020, arXiv 2002.11359). Its loss is 1 − GIoU (Rezatofighi et al. 2019, arXiv
1902.09630), which, unlike a distance of coordinates, weighs small objects as much as large ones.

Boxes are (…, 4) xmin ymin xmax ymax, as fractions of the input's width and height.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss

from pipeline.models.networks.heads import NetworkHead

GRID = 7
"""G, the cells a side of the averaged maps; most networks have 7×7 maps at their own input size."""
BOX_WEIGHT = 2.0
"""Weight of the box's loss, in [0, 2], beside the class's loss, in nats.

Twenty epochs on 1,000 scenes of 64×64 with the demo's network gave, on 400 others, a mean IoU of .53, .58 and .62 and a
top-1 accuracy of .71, .73 and .67 with 1, 2 and 5; .49 and .65 with 1 and G = 1, which is the pooled vector. One seed.
"""
NAME = "box_head"
"""Name of the layer in a network; a state dict has ``box_head.weight`` and ``box_head.bias``."""


class BoxHead(nn.Linear):
    """Feature maps (B, K, h, w) to one box (B, 4) an image, float32; K · 49 weights for each of the four values."""

    def __init__(self, channels: int) -> None:
        """Start with zeros, which give the centred box of half the input's width and height."""
        super().__init__(channels * GRID**2, 4)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the boxes; a box may reach beyond the input by less than half its side."""
        # With the 8 significant bits of bf16 only 256 positions of the input would differ.
        with torch.autocast(features.device.type, enabled=False):
            cells = F.adaptive_avg_pool2d(features.float(), GRID).flatten(1) / GRID**2
            boxes: Tensor = box_convert(super().forward(cells).sigmoid(), "cxcywh", "xyxy")
            return boxes


class BoxedOutput(NamedTuple):
    """The results of a network with a box head for B images."""

    logits: Tensor
    """(B, C)."""
    boxes: Tensor
    """(B, 4)."""


class BoxedNetwork(nn.Module):
    """Returns boxes beside the logits in one forward pass; it shares the layers of the network that it wraps."""

    def __init__(self, network: nn.Module, trunk: nn.Module) -> None:
        """``network`` has a box head; ``trunk`` has its layers up to the last feature maps, as ``cut`` returns them.

        The network's own forward pass runs, with the dropout that ``cut`` leaves out, and a hook stores the feature
        maps.
        """
        super().__init__()
        self.network = network
        own, layers = set(network.children()), list(trunk.children())
        last = [layer for layer in layers if layer in own][-1]
        self._closing = nn.Sequential(*(layer for layer in layers if layer not in own))
        self._caught: Tensor | None = None
        last.register_forward_hook(self._catch)

    def forward(self, images: Tensor) -> BoxedOutput:
        """Return logits and boxes of normalized ``images`` (B, 3, H, W)."""
        logits = self.network(images)
        maps, self._caught = self._caught, None
        return BoxedOutput(logits, self.network.get_submodule(NAME)(self._closing(maps)))

    def _catch(self, _layer: nn.Module, _inputs: object, maps: Tensor) -> None:
        self._caught = maps


def has_box_head(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the values of a box head."""
    return any(key.startswith(f"{NAME}.") for key in state)


def add_box_head(module: nn.Module, head: NetworkHead) -> nn.Module:
    """Return ``module`` with a new last child: a box head on the feature maps that ``head`` takes."""
    module.add_module(NAME, BoxHead(head.channels))
    return module


def box_losses(boxes: Tensor, true_boxes: Tensor) -> Tensor:
    """Return (B,) 1 − GIoU of ``boxes`` (B, 4) with ``true_boxes`` (B, 4), in [0, 2]; 0 where a true box is NaN."""
    known = ~true_boxes.isnan().any(1)
    losses = boxes.new_zeros(len(boxes))
    losses[known] = generalized_box_iou_loss(boxes[known], true_boxes[known])
    return losses
