"""Networks by name: every classification network of torchvision that camlake can cut, and camlake's own."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import WeightsEnum

from pipeline.models.architecture import GREATEST_WIDTH, WIDTH_STEPS, Architecture
from pipeline.models.box_head import NAME as BOX_HEAD
from pipeline.models.box_head import add_box_head, has_box_head
from pipeline.models.families import FAMILIES, IMAGENET_MEAN, IMAGENET_STD, REFUSED, Family, cut
from pipeline.models.heads import Pooling
from pipeline.models.network import CamNetwork, Preprocessing
from pipeline.models.tiny import IMAGE_SIZE, SCENE_CLASSES, TinyCam
from pipeline.models.zoo import DESIGNS
from schemas.errors import ModelError

DEMO = "camlake_demo"
"""The demo's network, trained by ``jobs.train_demo``; its weights ship with camlake."""
OWN_SIZE = 224
"""Side in pixels of the input of camlake's own networks where no weights say another."""

State = dict[str, Tensor]
"""A state dict: names of parameters and buffers to their values."""


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


def default_architecture(name: str) -> Architecture:
    """Return GAP, width 1 and the usual number of classes: ImageNet's 1000, of the demo's network its scenes'."""
    return Architecture(name, classes=SCENE_CLASSES) if name == DEMO else Architecture(name)


def poolings_of(name: str) -> tuple[Pooling, ...]:
    """Return what ``Architecture.pooling`` may be."""
    return DESIGNS[name].poolings if name in DESIGNS else ("gap",)


def load_network(
    name: str,
    state: Mapping[str, Tensor] | None,
    image_size: int | None,
    *,
    preprocessing: Preprocessing | None = None,
    exact_maps: bool = True,
) -> CamNetwork:
    """Return a network on the CPU, float32, in evaluation mode and without gradients.

    ``state`` is a state dict under the network's own names, which are torchvision's where it has the network; pooling,
    width and number of classes are those of its last layer, and float32 values are shared, not copied. None: random
    values from torch's generator. ``image_size`` is the side of the input in pixels, None the size of
    ``preprocessing``, which is what the weights expect, None what the default weights do. ``exact_maps`` false admits
    networks that only classify, for methods that need no exact class activation map.

    Raises ModelError for an unknown name (with the nearest known one), a head that has no exact map (with a network to
    use instead), a state that is another network's, and an ``image_size`` too small for the trunk.
    """
    family_of(name, exact_maps)
    if state is None:
        architecture = default_architecture(name)
        module = build(architecture)
    else:
        fitting = fit_state(name, state)
        architecture = architecture_of(name, fitting)
        module = with_values(architecture, fitting)
    own = preprocessing or preprocessing_of(name)
    network = cam_network(architecture, module, replace(own, image_size=image_size or own.image_size))
    network.eval().requires_grad_(False)
    size = network.preprocessing.image_size
    try:
        network.map_size(size)
    except RuntimeError as error:
        raise ModelError(f"--image-size {size} is too small for {name}, whose own is {own.image_size}") from error
    return network


def cam_network(architecture: Architecture, module: nn.Module, preprocessing: Preprocessing) -> CamNetwork:
    """Return ``module``, a network that ``build`` or ``build_network`` made, cut into trunk and head.

    It shares the module's layers, so a module in training can be asked for maps at any time. The trunk of a network
    that only classifies ends in the maps in front of its fully connected layers, and its head has no class maps.
    """
    trunk, head = cut(module, family_of(architecture.name, exact_maps=False, pooling=architecture.pooling))
    return CamNetwork(architecture.name, trunk, head, preprocessing, getattr(module, BOX_HEAD, None))


def with_box_head(architecture: Architecture, module: nn.Module) -> nn.Module:
    """Return ``module`` with a new box head, which ``cam_network`` then gives too.

    Raises ModelError for a network that only classifies.
    """
    return add_box_head(module, cut(module, family_of(architecture.name, pooling=architecture.pooling))[1])


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


def fit_state(name: str, state: Mapping[str, Tensor]) -> State:
    """Return ``state`` under the network's own key names, floating-point values as float32.

    Takes what common files add: DataParallel's ``module.`` prefix, DenseNet's names before PyTorch 0.4, the auxiliary
    classifiers of GoogLeNet and Inception. A box head is part of the network where the state has one. Raises ModelError
    that names the first missing, unexpected or misshapen key, and the network that the state fits, if there is one.
    """
    fitting = _renamed(name, state)
    problem = _misfit(name, fitting)
    if problem:
        owner = _owner(state, others_than=name)
        raise ModelError(f"the weights don't fit {name}: {problem}" + (f"; they fit {owner}" if owner else ""))
    return {key: value.float() if value.is_floating_point() else value for key, value in fitting.items()}


def architecture_of(name: str, fitting: Mapping[str, Tensor]) -> Architecture:
    """Return pooling, width and number of classes of a state that ``fit_state`` gave; the last layer tells them."""
    for pooling in poolings_of(name):
        last = fitting.get(f"{family_of(name, exact_maps=False, pooling=pooling).linear}.weight")
        if last is not None and last.ndim > 1 and len(last):
            width = DESIGNS[name].width_of(last.shape[1]) if name in DESIGNS else 1.0
            return Architecture(name, pooling, width, len(last))
    raise ModelError(f"the weights don't fit {name}: no last layer")


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
    raise ModelError(f"{name} has no exact class activation map: {reason}")


def _known_names() -> list[str]:
    return [DEMO, *DESIGNS, *_torchvision_names()]


def _torchvision_names() -> list[str]:
    """Return the networks that torchvision builds; those that camlake builds under the same name are left out."""
    return [name for name in torchvision.models.list_models(module=torchvision.models) if name not in DESIGNS]


def _builder(name: str) -> Callable[..., nn.Module]:
    builder: Callable[..., nn.Module] = TinyCam if name == DEMO else torchvision.models.get_model_builder(name)
    return builder


def _class_of(name: str) -> type[nn.Module]:
    """Return the class of a network without building it."""
    kind: type[nn.Module] = TinyCam if name == DEMO else inspect.signature(_builder(name)).return_annotation
    return kind


def build(architecture: Architecture) -> nn.Module:
    """Return the network with random values from torch's generator: normalized images (B, 3, H, W) to logits (B, C)."""
    if architecture.name in DESIGNS:
        return DESIGNS[architecture.name].build(architecture)
    options = dict(family_of(architecture.name).options)
    return _builder(architecture.name)(**options, num_classes=architecture.classes)


def with_values(architecture: Architecture, fitting: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with the values of a state that ``fit_state`` gave; they are shared, not copied."""
    module = _shaped_like(architecture, fitting)
    # Older files lack BatchNorm's step counters; those of the new module stand in. It also carries the versions
    # that torchvision's loaders ask for.
    complete = module.state_dict()
    complete.update(fitting)
    module.load_state_dict(complete, assign=True)
    return module


class _EmptyTensors(TorchFunctionMode):
    """Lets layers allocate no memory for their weights; small tables that networks compute from stay real."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, on the meta device where it makes a tensor of a given shape."""
        place = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **{**(kwargs or {}), **place})


def without_values(architecture: Architecture) -> nn.Module:
    """Return the module with parameters on the meta device: right shapes in milliseconds, even of 600 M parameters."""
    with _EmptyTensors():
        return build(architecture)


def _shaped_like(architecture: Architecture, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the module without values, with a box head where ``state`` has one and the network can have one."""
    module = without_values(architecture)
    boxed = has_box_head(state) and not family_of(architecture.name, exact_maps=False).refusal
    return with_box_head(architecture, module) if boxed else module


def _renamed(name: str, state: Mapping[str, Tensor]) -> State:
    unused = family_of(name, exact_maps=False).unused
    prefix = "module." if state and all(key.startswith("module.") for key in state) else ""
    named = {_DOTTED_LAYER.sub(r"\1\2.", key.removeprefix(prefix)): value for key, value in state.items()}
    return {key: value for key, value in named.items() if not key.startswith(unused)}


_DOTTED_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


def _misfit(name: str, fitting: Mapping[str, Tensor]) -> str | None:
    """Return what first contradicts the network's architecture, None where all of the state fits."""
    lasts = [f"{family_of(name, exact_maps=False, pooling=pooling).linear}.weight" for pooling in poolings_of(name)]
    last = next((key for key in lasts if key in fitting), None)
    if last is None:
        return f"{lasts[0]!r} is missing"
    if fitting[last].ndim < 2 or not len(fitting[last]):
        return f"{last!r} is {tuple(fitting[last].shape)}, expected a row a class"
    expected = _shaped_like(architecture_of(name, fitting), fitting).state_dict()
    for key, value in expected.items():
        if key not in fitting and not key.endswith(".num_batches_tracked"):
            return f"{key!r} is missing"
        if key in fitting and fitting[key].shape != value.shape:
            return f"{key!r} is {tuple(fitting[key].shape)}, expected {tuple(value.shape)}"
    return next((f"{key!r} is unexpected" for key in fitting if key not in expected), None)


def _owner(state: Mapping[str, Tensor], others_than: str) -> str | None:
    """Return another network that all of ``state`` fits."""
    names = [*model_names(), *classifier_names()]
    names.remove(others_than)
    source, kind = source_of(others_than), family_of(others_than, exact_maps=False)

    def distance(name: str) -> tuple[bool, bool, bool]:
        family = family_of(name, exact_maps=False)
        return name != source, family != kind, family.linear != kind.linear

    names.sort(key=distance)
    return next((name for name in names if _misfit(name, _renamed(name, state)) is None), None)
