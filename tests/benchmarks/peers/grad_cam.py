"""pytorch-grad-cam: a forward and a backward pass for each of the top-5 classes; maps have the network's input size.

For the last feature maps (h, w) of a network that ends in pooling and one linear layer, Grad-CAM's weights are the
layer's weights divided by h·w. So its map is the class activation map, with negative values set to 0, scaled to [0, 1].
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from pipeline.models.networks.network import CamNetwork
from tests.references.network_by_hand import TOPK, Classifier


def maps_of(network: CamNetwork) -> Callable[[Tensor], NDArray[np.float32]]:
    """Return a function from normalized images (B, 3, S, S) float32 to their top-5 maps (B, 5, S, S) in [0, 1]."""
    classifier = Classifier(network).requires_grad_(True)  # as in torchvision: without it, no gradient is computed
    cam = GradCAM(classifier, [classifier.trunk])

    def maps(images: Tensor) -> NDArray[np.float32]:
        with torch.no_grad():
            classes = classifier(images).topk(TOPK).indices
        ranks = [[ClassifierOutputTarget(class_id) for class_id in ids] for ids in classes.T.tolist()]
        return np.stack([cam(images, targets) for targets in ranks], axis=1)

    return maps
