"""Top-5 maps, boxes and features as a user would write them: the network's layers, a product of tensors, OpenCV.

The peers in ``tests.benchmarks.peers`` use this module. So a peer differs from camlake in the program that moves the
images, and in the boxes, which are cut from a map of the photograph's size.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.networks.heads import ConvHead, NormedHead
from pipeline.models.networks.network import CamNetwork, Preprocessing
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import UsageError
from schemas.options.config import Precision
from tests.references.opencv_boxes import THRESHOLD, component_boxes, upsampled

TOPK = 5
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NetworkOutput(NamedTuple):
    """The results of a forward pass for B images."""

    class_ids: NDArray[np.int64]
    """(B, 5) the ids of the most probable classes, the most probable first."""
    probs: NDArray[np.float32]
    maps: NDArray[np.float32]
    """(B, 5, h, w) the class activation maps of these classes."""
    pooled: NDArray[np.float32]
    """(B, K) averages of the last feature maps."""


def load(model: str, weights_path: str) -> tuple[CamNetwork, tuple[str, ...]]:
    """Return the network in the memory format channels_last, and the names of its classes.

    Raises UsageError for a head with a normalization, because one line of code cannot calculate its maps.
    """
    weights = load_weights(model, weights_path, None)
    network = load_network(model, weights.state, None)
    if isinstance(network.head, NormedHead):
        raise UsageError(f"--model {model}: its head has a normalization; allowed here: one linear layer, as resnet18")
    return network.to(memory_format=torch.channels_last), weights.labels


class Classifier(nn.Module):
    """A network in the form that map libraries expect: normalized images (B, 3, S, S) in, logits (B, C) out."""

    def __init__(self, network: CamNetwork) -> None:
        """Cut ``network``: ``trunk`` gives the last feature maps, and ``last`` is the layer that weights them."""
        super().__init__()
        self.trunk, self.head = network.trunk, network.head
        self.last = network.head.conv if isinstance(network.head, ConvHead) else network.head.linear

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.trunk(images)).logits


class ByHand:
    """Classes, maps and features from the network's layers, in the number type ``precision`` by autocast."""

    def __init__(self, network: CamNetwork, labels: Sequence[str], precision: Precision) -> None:
        """Keep the network and the names of its classes, ``labels``."""
        self.labels, self.preprocessing = np.array(labels, dtype=object), network.preprocessing
        self.channels = network.channels
        self._classifier = Classifier(network)
        self._autocast = AUTOCAST.get(precision)

    @classmethod
    def load(cls, model: str, weights: str, precision: Precision) -> Self:
        """Return the network ``model`` with the weights at ``weights``; raises UsageError as ``load`` does."""
        return cls(*load(model, weights), precision)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NetworkOutput:
        """Return classes, maps and features of normalized images (B, 3, S, S) float32."""
        with self._precision():
            features = self._classifier.trunk(images)
        features = features.float()
        logits, pooled = self._classifier.head(features)
        probs, class_ids = logits.softmax(1).topk(TOPK)
        last = self._classifier.last
        maps = torch.einsum("bnk,bkhw->bnhw", last.weight.flatten(1)[class_ids], features)
        if isinstance(last, nn.Conv2d):
            maps = F.relu(maps + last.bias[class_ids][..., None, None])
        return NetworkOutput(class_ids.numpy(), probs.numpy(), maps.numpy(), pooled.numpy())

    def classify(self, images: Tensor) -> None:
        """Run the network and drop the logits, for a loop that measures the network alone."""
        with torch.inference_mode(), self._precision():
            self._classifier(images)

    def normalized(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return pixels (B, S, S, 3) as ``normalized`` does, with this network's mean and standard deviation."""
        return normalized(pixels, self.preprocessing)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", self._autocast) if self._autocast else nullcontext()


def normalized(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Convert pixels (B, S, S, 3) uint8 RGB to the network's input: (B, 3, S, S) float32, normalized, channels_last."""
    mean, std = (255 * torch.tensor(values) for values in (preprocessing.mean, preprocessing.std))
    return ((torch.from_numpy(pixels) - mean) / std).permute(0, 3, 1, 2)


def read_image(path: str, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return a photograph squashed to (side, side, 3) uint8 RGB, and its original (height, width) in pixels."""
    picture = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    return cv2.resize(picture, (side, side)), picture.shape[:2]


def boxes_of(maps: NDArray[np.float32], sizes_hw: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the boxes (B, n, 4) of maps (B, n, h, w) of B photographs; NaN where a map has no positive value."""
    boxes = [[opencv_box(one, size) for one in image] for image, size in zip(maps, sizes_hw.tolist(), strict=True)]
    return np.array(boxes, np.float32).reshape(*maps.shape[:2], 4)


def opencv_box(heat: NDArray[np.float32], size_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the half-open box xyxy, in pixels, of the largest component at or above 20 % of the map's maximum.

    The map (h, w) is resized to the photograph's size first, as implementations of the paper's rule usually do. The
    four values are NaN where the map has no positive value.
    """
    surface = upsampled(heat, size_hw)
    highest = surface.max()
    if not highest > 0:
        return (np.nan,) * 4
    boxes, _ = component_boxes(surface, THRESHOLD * highest)
    left, top, right, bottom = boxes[0].tolist()
    return left, top, right, bottom
