"""Networks to train: built anew, or with the layers of a network that was trained before."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from pipeline.models.building import build, without_values
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.designs import DESIGNS
from pipeline.models.registry import check, family_of, in_words, poolings_of, source_of
from pipeline.models.weights.state_fitting import State, architecture_of, fit_state, with_values
from schemas.errors import ModelError


class Converted(NamedTuple):
    """A whole state for a network that is to be trained."""

    state: State
    new: tuple[str, ...]
    """Keys of the parameters that start from random values, in the network's order; all others were taken."""


def build_network(architecture: Architecture, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a network to train: normalized images (B, 3, H, W) float to logits (B, C).

    It is in training mode, on the CPU, float32, every parameter with a gradient, and drops out where its paper does.
    ``state`` is a state of just this architecture, such as a checkpoint's or ``convert``'s, whose values are copied;
    None: random values from torch's generator. ``cam_network`` gives its maps, and its ``state_dict()`` is what
    ``checkpoint_bytes`` stores. Raises ModelError for an architecture that can't be built and for another's state.
    """
    check(architecture)
    if state is None:
        return build(architecture).train()
    fitting = fit_state(architecture.name, state)
    found = architecture_of(architecture.name, fitting)
    if found != architecture:
        raise ModelError(f"the weights are those of {in_words(found)}, not of {in_words(architecture)}")
    return with_values(architecture, {key: value.clone() for key, value in fitting.items()}).requires_grad_().train()


def convert(architecture: Architecture, state: Mapping[str, Tensor]) -> Converted:
    """Return a state of ``architecture`` with the layers of ``state``, and random values, torch's, where it has none.

    ``state`` is torchvision's of the network that ``source_of`` names, or one of the same network with other classes or
    another pooling. The last layer is always new. Values are shared. Raises ModelError for an architecture that can't
    be built, a state that fits neither, and one of another width.
    """
    check(architecture)
    taken = _taken(architecture, state)
    whole = build(architecture).state_dict()
    new = tuple(key for key in whole if key not in taken and not key.endswith(".num_batches_tracked"))
    return Converted({**whole, **taken}, new)


def _taken(architecture: Architecture, state: Mapping[str, Tensor]) -> State:
    """Return what the network keeps of ``state``, under its own names."""
    name = architecture.name
    source = source_of(name)
    lasts = [f"{family_of(name, exact_maps=False, pooling=pooling).linear}." for pooling in poolings_of(name)]
    own = source in {None, name} or any(key.endswith(tuple(f"{last}weight" for last in lasts)) for key in state)
    origin, prefix = (name, "") if own or source is None else (source, DESIGNS[name].prefix)
    fitting = fit_state(origin, state)
    width = architecture_of(origin, fitting).width
    if width != architecture.width:
        raise ModelError(f"--width {architecture.width:g}: these weights are of width {width:g} and fit no other")
    shapes = {key: value.shape for key, value in without_values(architecture).state_dict().items()}
    named = {prefix + key: value for key, value in fitting.items() if not (prefix + key).startswith(tuple(lasts))}
    return {key: value for key, value in named.items() if shapes.get(key) == value.shape}
