"""The head that learns from boxes: one linear layer from the feature maps to one box an image, whatever its class.

It is what full supervision adds to a CAM network, to measure what learning from labels alone costs. It stands beside
the classifier, which it leaves as it is, and sees the maps before they are pooled over the whole image: pooling is what
makes class activation maps, but it forgets where things are. With maps averaged to G×G cells, f of shape (K, G, G),

    (t_x, t_y, t_w, t_h) = Σ_kij W_kij f_kij / G² + b,    centre and size of the box = sigmoid(t)

One box for all classes, not one a class, is learned from all images together (single-class regression in Simonyan &
Zisserman 2015, arXiv 1409.1556; Zhang et al. 2020, arXiv 2002.11359). Its loss is 1 − GIoU (Rezatofighi et al. 2019,
arXiv 1902.09630), which, unlike a distance of coordinates, does not ask less of small objects.

Boxes are (…, 4) xmin ymin xmax ymax, as shares of the input's width and height.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss

from pipeline.models.networks.heads import Head

GRID = 7
"""Cells a side of the averaged maps: all that most networks have at their own input size."""
BOX_WEIGHT = 2.0
"""What the box's loss, in [0, 2], counts beside the class's, in nats.

Twenty epochs on 1,000 scenes of 64×64 with the demo's network gave, on 400 others, a mean IoU of .53, .58 and .62 and a
top-1 accuracy of .71, .73 and .67 with 1, 2 and 5; .49 and .65 with 1 and G = 1, which is the pooled vector. One seed.
"""
NAME = "box_head"
"""Name of the layer among those of a network, hence ``box_head.weight`` and ``box_head.bias`` in a state dict."""


class BoxHead(nn.Linear):
    """Feature maps (B, K, h, w) to one box (B, 4) an image, float32; K · 49 weights for each of the four values."""

    def __init__(self, channels: int) -> None:
        """Start from zeros: the centred box of half the input's width and height."""
        super().__init__(channels * GRID**2, 4)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the boxes; they may reach beyond the input, by less than half its side."""
        # Autocast's 8 bits would tell only every 256th of the input apart.
        with torch.autocast(features.device.type, enabled=False):
            cells = F.adaptive_avg_pool2d(features.float(), GRID).flatten(1) / GRID**2
            boxes: Tensor = box_convert(super().forward(cells).sigmoid(), "cxcywh", "xyxy")
            return boxes


class BoxedAnswer(NamedTuple):
    """What a network with a box head says of B images."""

    logits: Tensor
    """(B, C)."""
    boxes: Tensor
    """(B, 4)."""


class BoxedNetwork(nn.Module):
    """Answers with a box beside the logits, in one forward pass; shares its layers with the network it is made of."""

    def __init__(self, network: nn.Module, trunk: nn.Module) -> None:
        """``network`` has a box head; ``trunk`` are its layers up to the last maps, as ``cut`` gives them.

        The network's own forward runs, with the dropout that ``cut`` leaves out, so the maps are caught on their way.
        """
        super().__init__()
        self.network = network
        own, layers = set(network.children()), list(trunk.children())
        last = [layer for layer in layers if layer in own][-1]
        self._closing = nn.Sequential(*(layer for layer in layers if layer not in own))
        self._caught: Tensor | None = None
        last.register_forward_hook(self._catch)

    def forward(self, images: Tensor) -> BoxedAnswer:
        """Return logits and boxes of normalized ``images`` (B, 3, H, W)."""
        logits = self.network(images)
        maps, self._caught = self._caught, None
        return BoxedAnswer(logits, self.network.get_submodule(NAME)(self._closing(maps)))

    def _catch(self, _layer: nn.Module, _inputs: object, maps: Tensor) -> None:
        self._caught = maps


def has_box_head(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has values of a box head."""
    return any(key.startswith(f"{NAME}.") for key in state)


def add_box_head(module: nn.Module, head: Head) -> nn.Module:
    """Return ``module`` with a new box head on the maps that its ``head`` takes; it is the module's last child."""
    module.add_module(NAME, BoxHead(head.channels))
    return module


def box_losses(boxes: Tensor, true_boxes: Tensor) -> Tensor:
    """Return (B,) 1 − GIoU of ``boxes`` (B, 4) with ``true_boxes`` (B, 4), in [0, 2]; 0 where those are NaN."""
    known = ~true_boxes.isnan().any(1)
    losses = boxes.new_zeros(len(boxes))
    losses[known] = generalized_box_iou_loss(boxes[known], true_boxes[known])
    return losses
