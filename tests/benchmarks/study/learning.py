"""One training of the study: a network learns scenes, in this process and on one device."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.images.augment import draw_views, take_views
from pipeline.images.synthetic.drawings import CLASSES
from pipeline.models import registry
from pipeline.models.learn.learner import Learner
from pipeline.models.learn.recipe import Recipe
from pipeline.models.localize.runtime import resolve_precision
from pipeline.models.networks.box_head import BoxedNetwork
from pipeline.models.networks.network import IMAGENET_MEAN, IMAGENET_STD, CamNetwork, Preprocessing
from schemas.errors import UsageError
from tests.benchmarks.study.scene_sets import SceneSet
from tests.benchmarks.study.study_config import StudyConfig
from tests.benchmarks.study.study_networks import StudyNetwork

SIDE_STEP_PX = 8


@dataclass(frozen=True)
class Learned:
    """A trained network."""

    module: nn.Module
    network: CamNetwork
    """The same layers, cut into trunk and head, with the preprocessing that has the side of the input."""
    losses: tuple[float, ...]
    """Mean loss of each epoch."""


def learn(config: StudyConfig, entry: StudyNetwork, seed: int, scenes: SceneSet, device: str) -> Learned:
    """Train an entry's network from random values; on one machine the same arguments give the same network."""
    torch.manual_seed(seed)
    module, network = make_network(config, entry)
    learner = Learner(
        module,
        network.preprocessing,
        Recipe.of("modern", config.epochs * -(-len(scenes) // config.batch_size), config.lr * entry.rate),
        new={name for name, _ in module.named_parameters()},
        device=device,
        precision=resolve_precision(config.precision, device),
        boxed=BoxedNetwork(module, network.trunk) if entry.from_boxes else None,
    )
    side = network.preprocessing.image_size
    losses = [
        _epoch(config, learner, scenes, seed, epoch, side, device, entry.from_boxes) for epoch in range(config.epochs)
    ]
    return Learned(module.eval(), network.eval(), tuple(losses))


def make_network(config: StudyConfig, entry: StudyNetwork) -> tuple[nn.Module, CamNetwork]:
    """Return an entry's network with values from torch's generator: the whole module, and the module cut in two."""
    architecture = entry.architecture(config.width, len(CLASSES))
    built = registry.get(architecture.name)
    module = built.construct(architecture)
    if entry.from_boxes:
        module = built.with_box_head(architecture, module)
    side = input_side(config, entry)
    return module, built.cam_network(architecture, module, Preprocessing(side, IMAGENET_MEAN, IMAGENET_STD))


def input_side(config: StudyConfig, entry: StudyNetwork) -> int:
    """Return the side in pixels of an entry's input: the smallest side whose maps have ``--cells`` cells a side.

    It is a multiple of 8 and not below the scenes' side. A network with fully connected layers gets the same side as
    its CAM form.
    """
    name = entry.network if registry.get(entry.network).exact_maps else f"{entry.network}_gap"
    cells = round(config.cells * entry.cells)
    architecture = replace(entry, network=name).architecture(config.width, len(CLASSES))
    with torch.random.fork_rng(devices=()):
        module = registry.get(name).construct(architecture)
    network = registry.get(name).cam_network(architecture, module, Preprocessing(1, IMAGENET_MEAN, IMAGENET_STD))
    for side in range(config.size, 100 * cells, SIDE_STEP_PX):
        try:
            if min(network.map_size(side)) >= cells:
                return side
        except RuntimeError:  # The input is too small for the trunk: a layer would have an empty output.
            continue
    raise UsageError(f"--cells {config.cells}: {entry.network} has no map of {cells} cells below {100 * cells} pixels")


def _epoch(
    config: StudyConfig, learner: Learner, scenes: SceneSet, seed: int, epoch: int, side: int, device: str, boxed: bool
) -> float:
    """Train once on all scenes in random order, half of them mirrored; return the mean loss."""
    order = np.random.default_rng((seed, epoch)).permutation(len(scenes))
    total = 0.0
    for numbers in np.split(order, range(config.batch_size, len(order), config.batch_size)):
        views = draw_views("flip", seed, epoch, numbers)
        images = take_views(torch.from_numpy(scenes.pixels[numbers]).to(device), views, side)
        targets = F.one_hot(torch.from_numpy(scenes.labels[numbers]), len(CLASSES)).float()
        boxes = viewed_boxes(scenes.boxes[numbers] / scenes.pixels.shape[1], views) if boxed else None
        total += float(learner.step(images, targets, len(numbers), boxes).losses.sum())
    return total / len(order)


def viewed_boxes(shares_xyxy: NDArray[np.float64], views: Tensor) -> Tensor:
    """Return boxes (B, 4) xyxy, as shares of width and height, mirrored where the view in ``views`` (B, 2, 3) is."""
    boxes = torch.from_numpy(shares_xyxy).float()
    mirrored = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], dim=1)
    return torch.where(views[:, :1, 0] < 0, mirrored, boxes)
