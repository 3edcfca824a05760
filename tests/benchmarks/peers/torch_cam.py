"""torch-cam's CAM: one forward pass with a hook, then a call for each of the top-5 classes.

The maps have the size of the last feature maps, and each is scaled to [0, 1]. torch-cam ignores a bias and a ReLU
between maps and logits, as in SqueezeNet.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchcam.methods import CAM

from pipeline.models.networks.network import CamNetwork
from tests.references.network_by_hand import TOPK, Classifier


def maps_of(network: CamNetwork) -> Callable[[Tensor], NDArray[np.float32]]:
    """Return a function from normalized images (B, 3, S, S) float32 to their top-5 maps (B, 5, h, w) in [0, 1]."""
    classifier = Classifier(network)
    cam = CAM(classifier, classifier.trunk, classifier.last)

    def maps(images: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            classes = classifier(images).topk(TOPK).indices
            ranks = [cam(class_idx=ids)[0] for ids in classes.T.tolist()]
        return torch.stack(ranks, dim=1).numpy()

    return maps
