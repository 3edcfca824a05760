"""Networks by name: every classification network of torchvision that camlake can cut, and camlake's own."""

import difflib
import inspect
from collections.abc import Callable
from typing import get_args

import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from pipeline.models.networks.architecture import GREATEST_WIDTH, WIDTH_STEPS, Architecture
from pipeline.models.networks.demo_network import IMAGE_SIZE, SCENE_CLASSES, DemoNetwork
from pipeline.models.networks.designs import DESIGNS
from pipeline.models.networks.families import FAMILIES, IMAGENET_MEAN, IMAGENET_STD, REFUSED, Family
from pipeline.models.networks.heads import Pooling
from pipeline.models.networks.network import Preprocessing
from schemas.errors import ModelError

DEMO = "camlake_demo"
"""The demo's network, trained by ``tests.benchmarks.train_demo``; its weights ship with camlake."""
OWN_SIZE = 224
"""Side in pixels of the input of camlake's own networks where no weights say another."""


def model_names() -> list[str]:
    """Return the names of all networks that have exact class activation maps.

    camlake's own stand first, the demo's at their head, then torchvision's by the alphabet.
    """
    own = [name for name, design in DESIGNS.items() if not design.family.refusal]
    return [DEMO, *own, *(name for name in _torchvision_names() if _class_of(name) in FAMILIES)]


def classifier_names() -> list[str]:
    """Return the names of the networks that only classify: fully connected layers stand behind their maps."""
    return [name for name, design in DESIGNS.items() if design.family.refusal]


def check(architecture: Architecture) -> None:
    """Raise ModelError where no such network can be built, for the first thing that is wrong with it."""
    name, width = architecture.name, architecture.width
    family_of(name, exact_maps=False)
    design = DESIGNS.get(name)
    if architecture.pooling not in get_args(Pooling):
        raise ModelError(f"--pooling {architecture.pooling}: allowed: {', '.join(get_args(Pooling))}")
    if architecture.pooling not in poolings_of(name):
        able = ", ".join(other for other, design in DESIGNS.items() if len(design.poolings) > 1)
        raise ModelError(f"--pooling {architecture.pooling}: {name} has no choice of pooling; these have: {able}")
    if design is None and width != 1:
        raise ModelError(f"--width {width:g}: {name} is built at width 1 alone; {', '.join(DESIGNS)} at any")
    if not (0 < width <= GREATEST_WIDTH and width * WIDTH_STEPS == int(width * WIDTH_STEPS)):
        raise ModelError(
            f"--width {width:g}: allowed: multiples of 1/{WIDTH_STEPS} up to {GREATEST_WIDTH:g}, such as 0.125 or 0.5"
        )
    if architecture.classes < 1:
        raise ModelError(f"{architecture.classes} classes: allowed: 1 or more")


def in_words(architecture: Architecture) -> str:
    """Return name, pooling (fc: fully connected layers in its place), width and number of classes, for messages."""
    head = "fc" if family_of(architecture.name, exact_maps=False).refusal else architecture.pooling
    return f"{architecture.name} ({head}, width {architecture.width:g}, {architecture.classes} classes)"


def default_architecture(name: str) -> Architecture:
    """Return GAP, width 1 and the usual number of classes: ImageNet's 1000, of the demo's network its scenes'."""
    return Architecture(name, classes=SCENE_CLASSES) if name == DEMO else Architecture(name)


def poolings_of(name: str) -> tuple[Pooling, ...]:
    """Return what ``Architecture.pooling`` may be."""
    return DESIGNS[name].poolings if name in DESIGNS else ("gap",)


def preprocessing_of(name: str, entry: WeightsEnum | None = None) -> Preprocessing:
    """Return what a network expects of its input with torchvision's weights ``entry``, by default its default ones.

    Of camlake's own networks with torchvision's weights in their convolutions it is what those expect.
    """
    if name == DEMO:
        return Preprocessing(IMAGE_SIZE, IMAGENET_MEAN, IMAGENET_STD)
    source = source_of(name)
    if source is None:
        return Preprocessing(OWN_SIZE, IMAGENET_MEAN, IMAGENET_STD)
    transforms = (entry or torchvision.models.get_model_weights(source).DEFAULT).transforms()
    if family_of(name, exact_maps=False).half_range:
        return Preprocessing(transforms.crop_size[0], (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Preprocessing(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


def source_of(name: str) -> str | None:
    """Return the torchvision network whose weights a network can start from; None where there is none."""
    if name == DEMO:
        return None
    return DESIGNS[name].source if name in DESIGNS else name


def official_weights(name: str) -> list[WeightsEnum]:
    """Return torchvision's weights of a whole network, its classifier too; none for camlake's own."""
    if source_of(name) != name:
        return []
    return [entry for entry in torchvision.models.get_model_weights(name) if entry.meta["categories"]]


def family_of(name: str, exact_maps: bool = True, pooling: Pooling = "gap") -> Family:
    """Return how the network is cut under one of its poolings.

    Raises ModelError for an unknown name, for a network that camlake can't cut, and, with ``exact_maps``, for one that
    only classifies.
    """
    known = _known_names()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`camlake models` lists all"
        raise ModelError(f"unknown network {name!r}; {hint}")
    family = DESIGNS[name].family_under(pooling) if name in DESIGNS else FAMILIES.get(_class_of(name))
    if family is None:
        reason = REFUSED.get(
            _class_of(name), "camlake does not know its head; `camlake models` lists the networks it knows"
        )
    elif exact_maps and family.refusal:
        reason = family.refusal
    else:
        return family
    if exact_maps:
        raise ModelError(f"{name} has no exact class activation map: {reason}")
    raise ModelError(f"{name} is not cut into feature maps and a head, as training and every --method need: {reason}")


def _known_names() -> list[str]:
    return [DEMO, *DESIGNS, *_torchvision_names()]


def _torchvision_names() -> list[str]:
    """Return the networks that torchvision builds; those that camlake builds under the same name are left out."""
    return [name for name in torchvision.models.list_models(module=torchvision.models) if name not in DESIGNS]


def builder_of(name: str) -> Callable[..., nn.Module]:
    """Return what builds a network that camlake does not build from ``DESIGNS``: the demo's or torchvision's."""
    builder: Callable[..., nn.Module] = DemoNetwork if name == DEMO else torchvision.models.get_model_builder(name)
    return builder


def _class_of(name: str) -> type[nn.Module]:
    """Return the class of a network without building it."""
    kind: type[nn.Module] = DemoNetwork if name == DEMO else inspect.signature(builder_of(name)).return_annotation
    return kind
