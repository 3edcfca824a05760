"""The classification networks of torchvision, and the weights that torchvision publishes.

A network's family follows from its class, so a new torchvision network of a known class needs no entry here.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torchvision
from torch import nn
from torchvision import models as tv

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.entry import NetworkEntry, PublishedWeights
from pipeline.models.networks.family import Family
from pipeline.models.networks.network import Preprocessing

_FINAL_RELU = "GAP + linear; maps after the last ReLU"
_FINAL_SUM = "GAP + linear; maps after the last block's sum and ReLU"
_FINAL_SILU = "GAP + linear; SiLU in place of ReLU, so features may be slightly negative"

FAMILIES: dict[type[nn.Module], Family] = {
    tv.ResNet: Family("avgpool", "fc", _FINAL_SUM),
    tv.RegNet: Family("avgpool", "fc", _FINAL_SUM),
    tv.DenseNet: Family(
        "classifier", "classifier", "GAP + linear; maps after the ReLU behind norm5", closing=(nn.ReLU,)
    ),
    tv.GoogLeNet: Family("avgpool", "fc", _FINAL_RELU, unused=("aux1.", "aux2.")),
    tv.Inception3: Family("avgpool", "fc", _FINAL_RELU, unused=("AuxLogits.",)),
    tv.MobileNetV2: Family(
        "classifier", "classifier.1", "GAP + linear; maps after the last ReLU6", stride16="features.14.conv.0"
    ),
    tv.MNASNet: Family("classifier", "classifier.1", _FINAL_RELU),
    tv.ShuffleNetV2: Family("fc", "fc", _FINAL_RELU),
    tv.EfficientNet: Family("avgpool", "classifier.1", _FINAL_SILU),
    tv.SqueezeNet: Family(
        "classifier",
        "classifier.1",
        "1×1 convolution, ReLU, GAP; class maps after that ReLU, bias 0",
        stride16="features.12.cat",
    ),
    tv.SwinTransformer: Family(
        "avgpool", "head", "GAP + linear; maps after the last layer normalization, no ReLU, so of both signs"
    ),
    tv.ConvNeXt: Family(
        "avgpool",
        "classifier.2",
        "GAP, layer normalization, linear; maps scaled by the image's own deviation, no ReLU behind the last block",
        norm="classifier.0",
    ),
}

REFUSED: dict[type[nn.Module], str] = {
    tv.MobileNetV3: "two layers around a Hardswish stand behind its last maps; use mobilenet_v2 or efficientnet_b0",
    tv.VisionTransformer: "it classifies by its class token, not by a mean over positions; use swin_t or convnext_tiny",
    tv.MaxVit: "two layers around a Tanh stand behind its last maps; use swin_t or convnext_tiny",
}
"""Why the networks of a class have no exact class activation map, and which network to use instead."""

_OPTIONS: dict[type[nn.Module], dict[str, Any]] = {
    kind: {"aux_logits": False, "init_weights": True} for kind in (tv.GoogLeNet, tv.Inception3)
}
"""Arguments of the builders of a class's networks."""
_HALF_RANGE = (tv.GoogLeNet, tv.Inception3)
"""Classes whose pretrained networks take (value/255 − 0.5)/0.5.

torchvision sets ``transform_input`` with their pretrained weights: the network then undoes ImageNet's normalization and
applies this one. camlake applies this one directly.
"""


@cache
def torchvision_names() -> tuple[str, ...]:
    """Return the names of all classification networks of torchvision, in alphabetical order."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


@cache
def torchvision_entry(name: str) -> NetworkEntry | None:
    """Return the entry of a torchvision network; None where its class is not in ``FAMILIES``."""
    builder, kind = _builder_and_class(name)
    if kind not in FAMILIES:
        return None
    construct = partial(_construct, builder, _OPTIONS.get(kind, {}))
    return NetworkEntry(name, construct, {"gap": FAMILIES[kind]}, name, partial(published_by_torchvision, name))


def refusal_of(name: str) -> str:
    """Return why camlake can't cut a torchvision network for which ``torchvision_entry`` returns None."""
    _, kind = _builder_and_class(name)
    return REFUSED.get(kind, "camlake does not know its head; `camlake models` lists the networks it knows")


def published_by_torchvision(name: str) -> Mapping[str, PublishedWeights]:
    """Return the weights of a torchvision network by name: DEFAULT first, then all in torchvision's order."""
    found = torchvision.models.get_model_weights(name)
    _, kind = _builder_and_class(name)
    return {
        key: _published(entry, half_range=kind in _HALF_RANGE)
        for key, entry in [("DEFAULT", found.DEFAULT), *((entry.name, entry) for entry in found)]
    }


def _published(entry: tv.WeightsEnum, half_range: bool) -> PublishedWeights:
    transforms, labels = entry.transforms(), entry.meta["categories"]
    mean, std = ((0.5,) * 3, (0.5,) * 3) if half_range else (tuple(transforms.mean), tuple(transforms.std))
    preprocessing = Preprocessing(transforms.crop_size[0], mean, std)
    return PublishedWeights(str(entry), entry.url, preprocessing, tuple(labels) if labels else None, whole=bool(labels))


def _builder_and_class(name: str) -> tuple[Callable[..., nn.Module], type[nn.Module]]:
    """Return the function that builds a network and the network's class, without building it."""
    builder = torchvision.models.get_model_builder(name)
    return builder, inspect.signature(builder).return_annotation


def _construct(builder: Callable[..., nn.Module], options: Mapping[str, Any], architecture: Architecture) -> nn.Module:
    return builder(**options, num_classes=architecture.classes)
