"""``NetworkEntry``: the description of one network before it has weights; it builds and cuts the network."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.models.networks.architecture import GREATEST_WIDTH, WIDTH_STEPS, Architecture
from pipeline.models.networks.box_head import NAME as BOX_HEAD
from pipeline.models.networks.box_head import add_box_head, has_box_head
from pipeline.models.networks.family import Family, cut
from pipeline.models.networks.heads import Pooling
from pipeline.models.networks.network import IMAGENET_INPUT, CamNetwork, Preprocessing
from schemas.errors import ModelError


@dataclass(frozen=True)
class PublishedWeights:
    """A file of trained weights that has a name."""

    source: str
    """Name of the weights in an output's lineage, such as ``ResNet50_Weights.IMAGENET1K_V2``."""
    location: str
    """URL of the file, the local path of a file that is installed with camlake, or ``package:`` and the name of an
    installed package that holds it."""
    preprocessing: Preprocessing
    """The preprocessing that the weights expect."""
    labels: tuple[str, ...] | None = None
    """Names of the C classes, in the order of the logits; None where only the file itself has them."""
    whole: bool = True
    """Whether the file has values for the classifier too."""
    load: Callable[[], dict[str, Tensor]] | None = None
    """Returns the state dict of weights that are no file at ``location``, such as those of another library's loader."""


@dataclass(frozen=True)
class NetworkEntry:
    """One network: its names of layers, its weights by name, and how to build and cut it.

    An entry does not depend on the list that contains it. ``pipeline.models.registry`` explains how to add one.
    """

    name: str
    """Name of the network, as for ``--model``."""
    construct: Callable[[Architecture], nn.Module]
    """Builds the network with random values from torch's generator: normalized (B, 3, H, W) to logits (B, C)."""
    families: Mapping[Pooling, Family]
    """How the network is cut under each pooling that it can be built with; the default pooling first."""
    source: str | None = None
    """Name of the network whose weights training can start from, often this one; None where there is none."""
    list_weights: Callable[[], Mapping[str, PublishedWeights]] = dict
    """Returns the published weights of ``source`` by name, with the key DEFAULT first."""
    source_prefix: str = ""
    """Prefix that this network's names of layers have before the source's names."""
    last_channels: int | None = None
    """Inputs of the last layer at width 1, of a network that is built at any width; None: at width 1 alone."""
    own_preprocessing: Preprocessing = IMAGENET_INPUT
    """The preprocessing that the network expects where there are no published weights."""
    default_classes: int = 1000
    """Number of classes where nothing else determines it: ImageNet's."""

    @property
    def family(self) -> Family:
        """The cut of the network with its default pooling."""
        return next(iter(self.families.values()))

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The allowed values of ``Architecture.pooling``."""
        return tuple(self.families)

    @property
    def exact_maps(self) -> bool:
        """Whether the network has exact class activation maps; otherwise it only classifies."""
        return self.family.refusal is None

    @property
    def last_layers(self) -> tuple[str, ...]:
        """Dotted name of the last layer under each pooling."""
        return tuple(family.linear for family in self.families.values())

    @cached_property
    def published(self) -> Mapping[str, PublishedWeights]:
        """The weights by name that training can start from, with the key DEFAULT first; empty where there are none."""
        return self.list_weights()

    @property
    def official_weights(self) -> Mapping[str, PublishedWeights]:
        """The published weights of this network itself, with its classifier, by name; the key DEFAULT comes first."""
        if self.source != self.name:
            return {}
        return {key: weights for key, weights in self.published.items() if weights.whole}

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that the network's default weights, or those of its source, expect."""
        return self.published["DEFAULT"].preprocessing if self.published else self.own_preprocessing

    @property
    def default_architecture(self) -> Architecture:
        """The network with its default pooling, at width 1 and with its usual number of classes."""
        return Architecture(self.name, classes=self.default_classes)

    def in_words(self, architecture: Architecture) -> str:
        """Return name, pooling (or fc for fully connected layers), width and number of classes, for messages."""
        head = architecture.pooling if self.exact_maps else "fc"
        return f"{self.name} ({head}, width {architecture.width:g}, {architecture.classes} classes)"

    def require_exact_maps(self) -> None:
        """Raise ModelError where the network only classifies, with a network to use instead."""
        if self.family.refusal:
            raise ModelError(f"{self.name} has no exact class activation map: {self.family.refusal}")

    def width_of(self, channels: int) -> float:
        """Return the allowed width nearest to the one at which the last layer has ``channels`` inputs."""
        if self.last_channels is None:
            return 1.0
        steps = round(WIDTH_STEPS * channels / self.last_channels)
        return min(max(steps, 1) / WIDTH_STEPS, GREATEST_WIDTH)

    @property
    def found(self) -> bool:
        """Whether the structure of the network was found by trying its parts, not by its class."""
        return self.family.cutter is not None

    def without_values(self, architecture: Architecture) -> nn.Module:
        """Return the network with parameters on the meta device: right shapes in milliseconds, whatever its size.

        A network whose structure was found has memory for its parameters, but undefined values: its tables of
        constants, which no state dict holds, may be made of tensors of any kind.
        """
        with _UndrawnValues() if self.found else _EmptyTensors():
            return self.construct(architecture)

    def shaped_like(self, architecture: Architecture, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the network without values, with a box head where ``state`` has one and the network can have one."""
        module = self.without_values(architecture)
        boxed = self.exact_maps and has_box_head(state)
        return self.with_box_head(architecture, module) if boxed else module

    def with_box_head(self, architecture: Architecture, module: nn.Module) -> nn.Module:
        """Return ``module``, a network that ``construct`` built, with a new box head, which ``cam_network`` then has.

        Raises ModelError for a network that only classifies.
        """
        self.require_exact_maps()
        if self.found:
            raise ModelError(f"--supervision boxes: allowed: networks that `camlake models` lists, not {self.name}")
        return add_box_head(module, cut(module, self.families[architecture.pooling])[1])

    def cam_network(self, architecture: Architecture, module: nn.Module, preprocessing: Preprocessing) -> CamNetwork:
        """Return ``module``, a network that ``construct`` built, cut into trunk and head.

        The result shares the module's layers, so that a module in training can be asked for maps at any time. The trunk
        of a network that only classifies ends in the maps in front of its fully connected layers, and its head has no
        class maps.
        """
        family = self.families[architecture.pooling]
        trunk, head = cut(module, family)
        return CamNetwork(self.name, trunk, head, preprocessing, getattr(module, BOX_HEAD, None), family.stride16)

    def outline(self) -> CamNetwork:
        """Return the default architecture without values: sizes and numbers can be read from it at no cost."""
        architecture = self.default_architecture
        return self.cam_network(architecture, self.without_values(architecture), self.preprocessing)


class _EmptyTensors(TorchFunctionMode):
    """Makes layers allocate no memory for their weights; small tables of constants still get values.

    Random values for such a weight are left out: on the meta device they would import torch._dynamo, for seconds.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, on the meta device where it makes a tensor of a given shape."""
        given = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == nn.init.__name__:
            weight: Tensor = args[0] if args else given["tensor"]
            if weight.is_meta:
                return weight
        device = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **{**given, **device})


class _UndrawnValues(TorchFunctionMode):
    """Leaves out drawing random values, which takes nearly all of the time in which a large network is built."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, or return the tensor as it is where ``func`` fills it with random values."""
        if func in _DRAWING:
            return args[0]
        return func(*args, **(kwargs or {}))


_DRAWING = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_}
