"""Networks from a state dict: under whose names and shapes it fits, what contradicts them, the whole network."""

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from pipeline.models.building import build, cam_network, shaped_like
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.designs import DESIGNS
from pipeline.models.networks.network import CamNetwork, Preprocessing
from pipeline.models.registry import (
    classifier_names,
    default_architecture,
    family_of,
    model_names,
    poolings_of,
    preprocessing_of,
    source_of,
)
from schemas.errors import ModelError

State = dict[str, Tensor]
"""A state dict: names of parameters and buffers to their values."""
GREATEST_IMAGE_SIZE = 4096
"""That ``--image-size`` takes, in pixels."""


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
    check_image_size(network, own.image_size)
    return network


def check_image_size(network: CamNetwork, own_size: int) -> None:
    """Raise ModelError, with what is allowed, where the side of the input is too small for the network's trunk.

    The network is in evaluation mode; ``own_size`` is the side that its weights expect, in pixels.
    """
    size = network.preprocessing.image_size
    if not _fits(network, size):
        larger = range(size + 1, GREATEST_IMAGE_SIZE + 1)
        least = larger[bisect_left(larger, True, key=lambda side: _fits(network, side))]
        raise ModelError(
            f"--image-size {size} is too small for {network.name}, whose own is {own_size}; allowed: {least} or more"
        )


def _fits(network: CamNetwork, size: int) -> bool:
    try:
        network.map_size(size)
    except RuntimeError:
        return False
    return True


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


def with_values(architecture: Architecture, fitting: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with the values of a state that ``fit_state`` gave; they are shared, not copied."""
    module = shaped_like(architecture, fitting)
    # Older files lack BatchNorm's step counters; those of the new module stand in. It also carries the versions
    # that torchvision's loaders ask for.
    complete = module.state_dict()
    complete.update(fitting)
    module.load_state_dict(complete, assign=True)
    return module


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
    expected = shaped_like(architecture_of(name, fitting), fitting).state_dict()
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
