"""Networks to train: with random values, or with the layers of a network that was trained before."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from pipeline.models import registry
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.entry import NetworkEntry
from pipeline.models.weights.state_fitting import State, architecture_of, fit_state, with_values
from schemas.errors import ModelError


class Converted(NamedTuple):
    """A whole state for a network that is to be trained."""

    state: State
    new: tuple[str, ...]
    """Keys of the parameters that have random values, in the network's order; the others have trained values."""


def build_network(architecture: Architecture, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a network to train: normalized images (B, 3, H, W) float to logits (B, C).

    The network is in training mode, on the CPU, float32, with a gradient for every parameter and its paper's dropout.
    ``state`` is a state of exactly this architecture, such as a checkpoint's or ``convert``'s, whose values are copied;
    with None the values are random, from torch's generator. ``NetworkEntry.cam_network`` cuts the network, and
    ``checkpoint_bytes`` stores its ``state_dict()``. Raises ModelError, which ends the run, for an architecture that
    can't be built and for the state of another architecture.
    """
    entry = registry.check(architecture)
    if state is None:
        return entry.construct(architecture).train()
    fitting = fit_state(entry, state)
    found = architecture_of(entry, fitting)
    if found != architecture:
        raise ModelError(f"the weights are those of {entry.in_words(found)}, not of {entry.in_words(architecture)}")
    return with_values(architecture, {key: value.clone() for key, value in fitting.items()}).requires_grad_().train()


def convert(architecture: Architecture, state: Mapping[str, Tensor]) -> Converted:
    """Return a whole state for ``architecture`` with the layers of ``state`` that fit; other layers have random values.

    ``state`` belongs to the network that the entry calls its source, or to the same network with other classes or
    another pooling. The last layer always has random values, from torch's generator. Other values are shared. Raises
    ModelError, which ends the run, for an architecture that can't be built, a state that fits neither network, and a
    state of another width.
    """
    entry = registry.check(architecture)
    taken = _taken(entry, architecture, state)
    whole = entry.construct(architecture).state_dict()
    new = tuple(key for key in whole if key not in taken and not key.endswith(".num_batches_tracked"))
    return Converted({**whole, **taken}, new)


def _taken(entry: NetworkEntry, architecture: Architecture, state: Mapping[str, Tensor]) -> State:
    """Return the values of ``state`` that the network keeps, under the network's own names."""
    lasts = tuple(f"{layer}." for layer in entry.last_layers)
    has_own_head = any(key.endswith(tuple(f"{last}weight" for last in lasts)) for key in state)
    if entry.source in {None, entry.name} or has_own_head:
        origin, prefix = entry, ""
    else:
        origin, prefix = registry.get(entry.source), entry.source_prefix
    fitting = fit_state(origin, state)
    width = architecture_of(origin, fitting).width
    if width != architecture.width:
        raise ModelError(f"--width {architecture.width:g}: these weights are of width {width:g} and fit no other")
    shapes = {key: value.shape for key, value in entry.without_values(architecture).state_dict().items()}
    named = {prefix + key: value for key, value in fitting.items() if not (prefix + key).startswith(lasts)}
    return {key: value for key, value in named.items() if shapes.get(key) == value.shape}
