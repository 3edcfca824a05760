"""Networks by name: every classification network of torchvision that has exact maps, and camlake's own."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import WeightsEnum

from pipeline.models.families import FAMILIES, IMAGENET_MEAN, IMAGENET_STD, REFUSED, Family, cut
from pipeline.models.network import CamNetwork, Preprocessing
from pipeline.models.tiny import IMAGE_SIZE, TinyCam
from schemas.errors import ModelError

DEMO = "camlake_demo"
"""The project's own network, in the place of torchvision's names."""

State = dict[str, Tensor]
"""A state dict: names of parameters and buffers to their values."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a network without its weights."""

    name: str
    map_hw: tuple[int, int]
    """Rows and columns of the class activation map at ``image_size``."""
    channels: int
    """K, the length of the feature vector."""
    parameters: int
    image_size: int
    """Side of the input in pixels, as the default weights want it."""
    head: str
    """The head, and where the last ReLU stands."""
    weights: tuple[str, ...]
    """What ``--weights`` takes by name, the default first."""


def model_names() -> list[str]:
    """Return the names of all networks that ``load_network`` takes, camlake's own first, then by the alphabet."""
    return [DEMO, *(name for name in _torchvision_names() if _class_of(name) in FAMILIES)]


def describe(name: str) -> ModelCard:
    """Return the card of a network; computes shapes only and loads nothing. Raises ModelError as ``load_network``."""
    network = _network(name, _without_values(name, classes=None), image_size=None)
    size = network.preprocessing.image_size
    return ModelCard(
        name=name,
        map_hw=network.map_size(size),
        channels=network.channels,
        parameters=network.n_parameters,
        image_size=size,
        head=family_of(name).about,
        weights=("DEFAULT", *(entry.name for entry in official_weights(name))),
    )


def load_network(name: str, state: Mapping[str, Tensor] | None, image_size: int | None) -> CamNetwork:
    """Return a network on the CPU, float32, in evaluation mode and without gradients.

    ``state`` is a state dict under torchvision's names; the number of classes is that of its last layer, and float32
    values are shared, not copied. None: random values from torch's generator. ``image_size`` is the side of the input
    in pixels, None the size that the default weights want.

    Raises ModelError for an unknown name (with the nearest known one), a head that has no exact map (with a network to
    use instead), a state that is another network's, and an ``image_size`` too small for the trunk.
    """
    if state is None:
        module = _build(name, classes=None)
    else:
        fitting = fit_state(name, state)
        module = _without_values(name, classes=count_classes(name, fitting))
        # Older files lack BatchNorm's step counters; those of the new module stand in. It also carries the versions
        # that torchvision's loaders ask for.
        complete = module.state_dict()
        complete.update(fitting)
        module.load_state_dict(complete, assign=True)
    return _network(name, module, image_size)


def preprocessing_of(name: str, entry: WeightsEnum | None = None) -> Preprocessing:
    """Return what a network expects of its input with torchvision's weights ``entry``, by default its default ones."""
    if name == DEMO:
        return Preprocessing(IMAGE_SIZE, IMAGENET_MEAN, IMAGENET_STD)
    transforms = (entry or torchvision.models.get_model_weights(name).DEFAULT).transforms()
    if family_of(name).half_range:
        return Preprocessing(transforms.crop_size[0], (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Preprocessing(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


def official_weights(name: str) -> list[WeightsEnum]:
    """Return torchvision's weights of a network, none for camlake's own."""
    return [] if name == DEMO else list(torchvision.models.get_model_weights(name))


def fit_state(name: str, state: Mapping[str, Tensor]) -> State:
    """Return ``state`` under the network's own key names, floating-point values as float32.

    Takes what common files add: DataParallel's ``module.`` prefix, DenseNet's names before PyTorch 0.4, the auxiliary
    classifiers of GoogLeNet and Inception. Raises ModelError that names the first missing, unexpected or misshapen key,
    and the network that the state fits, if there is one.
    """
    fitting = _renamed(name, state)
    problem = _misfit(name, fitting)
    if problem:
        owner = _owner(state, others_than=name)
        raise ModelError(f"the weights don't fit {name}: {problem}" + (f"; they fit {owner}" if owner else ""))
    return {key: value.float() if value.is_floating_point() else value for key, value in fitting.items()}


def count_classes(name: str, fitting: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a state that ``fit_state`` gave."""
    return len(fitting[f"{family_of(name).linear}.weight"])


def family_of(name: str) -> Family:
    """Return how the network is cut; raises ModelError for an unknown name and for a head that has no exact map."""
    if name != DEMO and name not in _torchvision_names():
        near = difflib.get_close_matches(name.lower(), [DEMO, *_torchvision_names()], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`camlake models` lists all"
        raise ModelError(f"unknown network {name!r}; {hint}")
    kind = _class_of(name)
    if kind not in FAMILIES:
        reason = REFUSED.get(kind, "camlake does not know its head; `camlake models` lists the networks it knows")
        raise ModelError(f"{name} has no exact class activation map: {reason}")
    return FAMILIES[kind]


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _builder(name: str) -> Callable[..., nn.Module]:
    builder: Callable[..., nn.Module] = TinyCam if name == DEMO else torchvision.models.get_model_builder(name)
    return builder


def _class_of(name: str) -> type[nn.Module]:
    """Return the class of a network without building it."""
    kind: type[nn.Module] = TinyCam if name == DEMO else inspect.signature(_builder(name)).return_annotation
    return kind


def _build(name: str, classes: int | None) -> nn.Module:
    options: dict[str, Any] = dict(family_of(name).options)
    if classes is not None:
        options["num_classes"] = classes
    return _builder(name)(**options)


class _EmptyTensors(TorchFunctionMode):
    """Lets layers allocate no memory for their weights; small tables that networks compute from stay real."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, on the meta device where it makes a tensor of a given shape."""
        place = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **{**(kwargs or {}), **place})


def _without_values(name: str, classes: int | None) -> nn.Module:
    """Return the module with parameters on the meta device: right shapes in milliseconds, even of 600 M parameters."""
    with _EmptyTensors():
        return _build(name, classes)


def _network(name: str, module: nn.Module, image_size: int | None) -> CamNetwork:
    own = preprocessing_of(name)
    size = image_size or own.image_size
    trunk, head = cut(module, family_of(name))
    network = CamNetwork(name, trunk, head, Preprocessing(size, own.mean, own.std)).eval().requires_grad_(False)
    try:
        network.map_size(size)
    except RuntimeError as error:
        raise ModelError(f"--image-size {size} is too small for {name}, whose own is {own.image_size}") from error
    return network


def _renamed(name: str, state: Mapping[str, Tensor]) -> State:
    unused = family_of(name).unused
    prefix = "module." if state and all(key.startswith("module.") for key in state) else ""
    named = {_DOTTED_LAYER.sub(r"\1\2.", key.removeprefix(prefix)): value for key, value in state.items()}
    return {key: value for key, value in named.items() if not key.startswith(unused)}


_DOTTED_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


def _misfit(name: str, fitting: Mapping[str, Tensor]) -> str | None:
    """Return what first contradicts the network's architecture, None where all of the state fits."""
    last = f"{family_of(name).linear}.weight"
    if last not in fitting:
        return f"{last!r} is missing"
    expected = _without_values(name, classes=len(fitting[last])).state_dict()
    for key, value in expected.items():
        if key not in fitting and not key.endswith(".num_batches_tracked"):
            return f"{key!r} is missing"
        if key in fitting and fitting[key].shape != value.shape:
            return f"{key!r} is {tuple(fitting[key].shape)}, expected {tuple(value.shape)}"
    return next((f"{key!r} is unexpected" for key in fitting if key not in expected), None)


def _owner(state: Mapping[str, Tensor], others_than: str) -> str | None:
    """Return another network that all of ``state`` fits."""
    names = sorted(model_names(), key=lambda name: _class_of(name) is not _class_of(others_than))
    names.remove(others_than)
    return next((name for name in names if _misfit(name, _renamed(name, state)) is None), None)
