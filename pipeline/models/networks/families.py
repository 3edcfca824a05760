"""The families of networks: where each one's last feature maps are, what its head is, and which have no exact map.

A family is one class of torchvision, not one name, so a new member of a known family works at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision import models as tv

from pipeline.models.networks.demo_network import DemoNetwork
from pipeline.models.networks.heads import ClassifierHead, ConvHead, Head, LinearHead, NormedHead, Pooling

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Family:
    """How a network of one class is cut into trunk and head."""

    head: str
    """Name of the first child module that is no part of the trunk."""
    linear: str
    """Dotted name of the one linear layer, or 1×1 convolution, of the head."""
    about: str
    """The head, and where the last ReLU stands."""
    norm: str | None = None
    """Dotted name of a layer normalization between the average and the linear layer."""
    closing: tuple[Callable[[], nn.Module], ...] = ()
    """What the network's forward does between the trunk's last child and the average."""
    options: tuple[tuple[str, Any], ...] = ()
    """Arguments of torchvision's builder."""
    unused: tuple[str, ...] = ()
    """Prefixes of state-dict keys of auxiliary classifiers, which only training needs."""
    half_range: bool = False
    """Whether the network wants (value/255 − 0.5)/0.5, whatever the transforms of its weights say."""
    pooling: Pooling = "gap"
    refusal: str | None = None
    """Why the network only classifies and has no exact class activation map, and what to use instead."""


def cut(module: nn.Module, family: Family) -> tuple[nn.Module, Head]:
    """Return the trunk, images (B, 3, H, W) to feature maps (B, K, h, w), and the head of a torchvision ``module``.

    Both consist of the module's own layers, so they share its weights, but for dropout in front of a linear head.
    """
    children = list(module.named_children())
    names = [name for name, _ in children]
    trunk = nn.Sequential()
    for name, child in children[: names.index(family.head)]:
        trunk.add_module(name, child)
    for layer in family.closing:
        trunk.append(layer())
    return trunk, _head(module, family)


def _head(module: nn.Module, family: Family) -> Head:
    match module.get_submodule(family.linear), family.norm and module.get_submodule(family.norm):
        case nn.Linear() as linear, None if family.refusal:
            *hidden, _ = module.get_submodule(family.linear.rpartition(".")[0]).children()
            return ClassifierHead(nn.Sequential(module.get_submodule(family.head), nn.Flatten(), *hidden), linear)
        case nn.Linear() as linear, None:
            return LinearHead(linear, family.pooling)
        case nn.Linear() as linear, nn.LayerNorm() as norm:
            return NormedHead(norm, linear)
        case nn.Conv2d() as conv, None:
            return ConvHead(conv, family.pooling)
        case layers:
            raise TypeError(f"no head for {layers}: the family's entry names the wrong layers")


_FINAL_RELU = "GAP + linear; maps after the last ReLU"
_FINAL_SUM = "GAP + linear; maps after the last block's sum and ReLU"
_FINAL_SILU = "GAP + linear; SiLU in place of ReLU, so features may be slightly negative"
# torchvision sets transform_input with the pretrained weights of these two: ImageNet's normalization is undone and
# (value/255 − 0.5)/0.5 applied. Done directly here.
_INCEPTION: dict[str, Any] = {
    "head": "avgpool",
    "linear": "fc",
    "about": _FINAL_RELU,
    "options": (("aux_logits", False), ("init_weights", True)),
    "half_range": True,
}

FAMILIES: dict[type[nn.Module], Family] = {
    DemoNetwork: Family("classifier", "classifier", _FINAL_SUM),
    tv.ResNet: Family("avgpool", "fc", _FINAL_SUM),
    tv.RegNet: Family("avgpool", "fc", _FINAL_SUM),
    tv.DenseNet: Family(
        "classifier", "classifier", "GAP + linear; maps after the ReLU behind norm5", closing=(nn.ReLU,)
    ),
    tv.GoogLeNet: Family(**_INCEPTION, unused=("aux1.", "aux2.")),
    tv.Inception3: Family(**_INCEPTION, unused=("AuxLogits.",)),
    tv.MobileNetV2: Family("classifier", "classifier.1", "GAP + linear; maps after the last ReLU6"),
    tv.MNASNet: Family("classifier", "classifier.1", _FINAL_RELU),
    tv.ShuffleNetV2: Family("fc", "fc", _FINAL_RELU),
    tv.EfficientNet: Family("avgpool", "classifier.1", _FINAL_SILU),
    tv.SqueezeNet: Family(
        "classifier", "classifier.1", "1×1 convolution, ReLU, GAP; class maps after that ReLU, bias 0"
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
"""Why a family has no exact class activation map, and what to use instead."""
