"""Networks by name: camlake's own, and every classification network of torchvision that camlake can cut.

Callers look a name up once and pass the ``NetworkEntry`` on.

How to add a network:

- A new torchvision network of a known class needs nothing. A new class is one line in ``FAMILIES`` of
  ``networks/torchvision_networks.py``: the names of its layers.
- A network that camlake builds itself is one ``NetworkEntry`` in ``OWN_NETWORKS`` of ``networks/own_networks.py``: a
  function that builds it from an ``Architecture``, a ``Family`` for each of its poolings, and where its weights come
  from, if anyone publishes them.
- Networks of another library that have no names here are found by their structure, see ``networks/found``: those of
  timm, of transformers and of the user's own code.

No other module depends on the origin of an entry. Commands, options, conversion of weights and training then know the
network; ``tests/test_models.py`` compares its maps with its logits.
"""

import difflib
from functools import cache
from importlib.metadata import version
from typing import get_args

from pipeline.models.networks.architecture import GREATEST_WIDTH, WIDTH_STEPS, Architecture
from pipeline.models.networks.entry import NetworkEntry
from pipeline.models.networks.found.hf_networks import hf_entry
from pipeline.models.networks.found.own_code import own_entry
from pipeline.models.networks.found.timm_networks import timm_entry
from pipeline.models.networks.heads import Pooling
from pipeline.models.networks.own_networks import OWN_NETWORKS
from pipeline.models.networks.torchvision_networks import refusal_of, torchvision_entry, torchvision_names
from schemas.errors import ModelError
from schemas.options.network_names import reference_of


def get(name: str, *, exact_maps: bool = False) -> NetworkEntry:
    """Return what camlake knows of the network that ``--model`` calls ``name``.

    Raises ModelError for an unknown name (with the nearest known one), for a network that camlake can't cut, and, with
    ``exact_maps``, for one that only classifies; each ends the run.
    """
    if reference := reference_of(name):
        entry_of = timm_entry if reference.timm else hf_entry if reference.hf else own_entry
        found = entry_of(name, reference)
        if exact_maps:
            found.require_exact_maps()
        return found
    if name not in OWN_NETWORKS and name not in torchvision_names():
        near = difflib.get_close_matches(name.lower(), [*OWN_NETWORKS, *torchvision_names()], n=1)
        others = "`camlake models` lists all; others are timm/NAME, hf/FOLDER-OR-NAME and package.module:function"
        hint = f"did you mean {near[0]!r}?" if near else others
        raise ModelError(f"unknown network {name!r}; {hint}")
    entry = OWN_NETWORKS.get(name) or torchvision_entry(name)
    if entry is None and exact_maps:
        raise ModelError(f"{name} has no exact class activation map: {refusal_of(name)}")
    if entry is None:
        raise ModelError(
            f"{name} is not cut into feature maps and a head, as training and every --method need: {refusal_of(name)}"
        )
    if exact_maps:
        entry.require_exact_maps()
    return entry


def origin_facts(name: str) -> dict[str, str]:
    """Return what a card should say of a network that another library builds: its version and the name it has there."""
    reference = reference_of(name)
    names = {"timm": reference and reference.timm, "transformers": reference and reference.hf}
    facts = [{library: version(library), f"{library}_name": own} for library, own in names.items() if own]
    return facts[0] if facts else {}


@cache
def entries() -> tuple[NetworkEntry, ...]:
    """Return every network that ``get`` returns.

    Networks with exact class activation maps stand first: camlake's own, then torchvision's by the alphabet. Networks
    that only classify follow.
    """
    by_torchvision = [torchvision_entry(name) for name in torchvision_names() if name not in OWN_NETWORKS]
    found = [*OWN_NETWORKS.values(), *(entry for entry in by_torchvision if entry)]
    return tuple(sorted(found, key=lambda entry: not entry.exact_maps))


def check(architecture: Architecture) -> NetworkEntry:
    """Return the entry of the network; raise ModelError for the first thing that makes it impossible to build."""
    name, width = architecture.name, architecture.width
    entry = get(name)
    if architecture.pooling not in get_args(Pooling):
        raise ModelError(f"--pooling {architecture.pooling}: allowed: {', '.join(get_args(Pooling))}")
    if architecture.pooling not in entry.poolings:
        able = ", ".join(other.name for other in entries() if len(other.poolings) > 1)
        raise ModelError(f"--pooling {architecture.pooling}: {name} has no choice of pooling; these have: {able}")
    if entry.last_channels is None and width != 1:
        able = ", ".join(other.name for other in OWN_NETWORKS.values() if other.last_channels)
        raise ModelError(f"--width {width:g}: {name} is built at width 1 alone; {able} at any")
    if not (0 < width <= GREATEST_WIDTH and width * WIDTH_STEPS == int(width * WIDTH_STEPS)):
        raise ModelError(
            f"--width {width:g}: allowed: multiples of 1/{WIDTH_STEPS} up to {GREATEST_WIDTH:g}, such as 0.125 or 0.5"
        )
    if architecture.classes < 1:
        raise ModelError(f"{architecture.classes} classes: allowed: 1 or more")
    return entry
