"""State dicts and networks: whether a state dict fits a network, and the network with the values of a state dict."""

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.models import registry
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.entry import NetworkEntry
from pipeline.models.networks.found.identity import check_identity
from pipeline.models.networks.network import CamNetwork, Preprocessing
from pipeline.models.weights.head_file import Head
from schemas.errors import ModelError

State = dict[str, Tensor]
"""A state dict: names of parameters and buffers to their values."""
GREATEST_IMAGE_SIZE = 4096
"""Greatest ``--image-size`` that is allowed, in pixels."""


def load_network(
    name: str,
    state: Mapping[str, Tensor] | None,
    image_size: int | None,
    *,
    preprocessing: Preprocessing | None = None,
    exact_maps: bool = True,
    head: Head | None = None,
) -> CamNetwork:
    """Return a network on the CPU, float32, in evaluation mode and without gradients.

    ``state`` is a state dict under the network's own names, which are torchvision's names where torchvision has the
    network; its last layer says pooling, width and number of classes. Float32 values are shared, not copied. With None
    the network has random values from torch's generator. ``image_size`` is the side of the input in pixels; with None
    it is the size in ``preprocessing``. ``preprocessing`` is what the weights expect of the input; with None it is what
    the network's default weights expect. ``exact_maps`` false admits networks that only classify, for methods that need
    no exact class activation map. ``head`` takes the place of the last layer of the state.

    Raises ModelError, which ends the run, for an unknown name (with the nearest known one), a head that has no exact
    map (with a network to use instead), a state of another network, an ``image_size`` that the trunk can't take, and a
    network whose structure was found and whose maps don't average to its logits.
    """
    entry = registry.get(name, exact_maps=exact_maps)
    if state is None:
        architecture = entry.default_architecture
        module = entry.construct(architecture)
    else:
        fitting = fit_state(entry, state)
        architecture = architecture_of(entry, fitting)
        module = with_values(architecture, fitting)
    expected = preprocessing or entry.preprocessing
    network = entry.cam_network(architecture, module, replace(expected, image_size=image_size or expected.image_size))
    network.eval().requires_grad_(False)
    if entry.found:
        check_identity(network, module.eval(), maps=entry.exact_maps)
    check_image_size(network, expected.image_size)
    if head is None:
        return network
    return network.with_linear_layer(torch.from_numpy(head.weight), torch.from_numpy(head.bias)).eval()


def check_image_size(network: CamNetwork, own_size: int) -> None:
    """Raise ModelError, with the least allowed size, where the side of the input is too small for the network's trunk.

    The network must be in evaluation mode. ``own_size`` is the side that its weights expect, in pixels.
    """
    size = network.preprocessing.image_size
    if not _fits(network, size):
        if getattr(network.trunk, "found", False):
            raise ModelError(f"--image-size {size}: {network.name} can't take it; its own is {own_size}")
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


def fit_state(entry: NetworkEntry, state: Mapping[str, Tensor]) -> State:
    """Return ``state`` under the network's own key names, floating-point values as float32.

    Accepts what common files add: the prefixes of DataParallel, torch.compile and of the module that a training script
    makes, mmpretrain's names of ResNets, DenseNet's names before PyTorch 0.4, the auxiliary classifiers of GoogLeNet
    and Inception, and camlake's box head. Raises ModelError, which ends the run and names the first key that is
    missing, unexpected or of another shape, and the network that the state fits if there is one.
    """
    fitting = _renamed(entry, state)
    problem = _misfit(entry, fitting)
    if problem:
        owner = _owner(state, entry)
        raise ModelError(f"the weights don't fit {entry.name}: {problem}" + (f"; they fit {owner}" if owner else ""))
    return {key: value.float() if value.is_floating_point() else value for key, value in fitting.items()}


def architecture_of(entry: NetworkEntry, fitting: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture of a state that ``fit_state`` returned; its last layer says pooling, width and classes.

    Raises ModelError where there is no last layer.
    """
    for pooling, family in entry.families.items():
        last = fitting.get(f"{family.linear}.weight")
        if last is not None and last.ndim > 1 and len(last):
            return Architecture(entry.name, pooling, entry.width_of(last.shape[1]), len(last))
    raise ModelError(f"the weights don't fit {entry.name}: no last layer")


def with_values(architecture: Architecture, fitting: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with the values of a state that ``fit_state`` returned; they are shared, not copied."""
    module = registry.get(architecture.name).shaped_like(architecture, fitting)
    # Older files lack BatchNorm's step counters, so the new module's counters are used. The module's state also
    # carries the versions that torchvision's loaders ask for.
    complete = module.state_dict()
    complete.update(fitting)
    module.load_state_dict(complete, assign=True)
    return module


def _renamed(entry: NetworkEntry, state: Mapping[str, Tensor]) -> State:
    """Return ``state`` under the network's own key names, without the values that only training needs."""
    if any(key.startswith("backbone.") for key in state) and "head.fc.weight" in state:
        state = {key.removeprefix("backbone.").removeprefix("head."): value for key, value in state.items()}
    prefix = _prefix(entry, state)
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    named = {_DOTTED_LAYER.sub(r"\1\2.", key): value for key, value in inside.items()}
    return {key: value for key, value in named.items() if not key.startswith(entry.family.unused)}


def _prefix(entry: NetworkEntry, state: Mapping[str, Tensor]) -> str:
    """Return the prefix of the network's names of layers in ``state``, which is often empty.

    The name of the last layer shows the prefix. Keys without the prefix belong to the training, such as a loss with
    weights. The result is empty where ``state`` has two networks with such a layer side by side.
    """
    lasts = tuple(f".{layer}.weight" for layer in entry.last_layers)
    prefixes = [key[: -len(last) + 1] for key in state for last in lasts if f".{key}".endswith(last)]
    outermost = [one for one in prefixes if not any(one != other and one.startswith(other) for other in prefixes)]
    return outermost[0] if len(outermost) == 1 else ""


_DOTTED_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
"""DenseNet's names of layers before PyTorch 0.4: ``denselayer1.norm.1.`` is now ``denselayer1.norm1.``"""


def _misfit(entry: NetworkEntry, fitting: Mapping[str, Tensor]) -> str | None:
    """Return the first contradiction between a state and the network's architecture; None where the state fits."""
    lasts = [f"{layer}.weight" for layer in entry.last_layers]
    last = next((key for key in lasts if key in fitting), None)
    if last is None:
        return f"{lasts[0]!r} is missing"
    if fitting[last].ndim < 2 or not len(fitting[last]):
        return f"{last!r} is {tuple(fitting[last].shape)}, expected a row a class"
    expected = entry.shaped_like(architecture_of(entry, fitting), fitting).state_dict()
    for key, value in expected.items():
        if key not in fitting and not key.endswith(".num_batches_tracked"):
            return f"{key!r} is missing"
        if key in fitting and fitting[key].shape != value.shape:
            return f"{key!r} is {tuple(fitting[key].shape)}, expected {tuple(value.shape)}"
    return next((f"{key!r} is unexpected" for key in fitting if key not in expected), None)


def _owner(state: Mapping[str, Tensor], asked: NetworkEntry) -> str | None:
    """Return the name of another network than ``asked`` that fits all of ``state``; close relatives are tried first."""

    def distance(entry: NetworkEntry) -> tuple[bool, bool, bool]:
        return entry.name != asked.source, entry.family != asked.family, entry.family.linear != asked.family.linear

    others = sorted((entry for entry in registry.entries() if entry.name != asked.name), key=distance)
    return next((entry.name for entry in others if _misfit(entry, _renamed(entry, state)) is None), None)
