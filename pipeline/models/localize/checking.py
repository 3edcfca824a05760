"""What is found in one network: where it is cut, its head, and whether its class activation maps are exact."""

from torch import nn

from pipeline.models import registry
from pipeline.models.known_networks import row_of
from pipeline.models.localize.foreground import stride16_name
from pipeline.models.localize.stride16 import stride16_hw
from pipeline.models.networks.found.finding import Structure
from pipeline.models.networks.network import Preprocessing


def findings(name: str) -> dict[str, str | int | float]:
    """Return the facts about the network ``name``, by building it with random values.

    Raises ModelError for a name that nobody knows and for a network without feature maps, with what was seen.
    """
    entry = registry.get(name)
    facts: dict[str, str | int | float] = dict(row_of(entry))
    network = entry.outline().eval()
    side = network.preprocessing.image_size
    tensor = stride16_name(network)
    rows, columns = network.map_size(side)
    facts["map"] = f"{rows}×{columns}"
    structure = getattr(entry.family.cutter, "__self__", None)
    if isinstance(structure, Structure):
        where = {"methods": "its methods", "graph": "torch.fx's graph", "names": "the given names"}[structure.way]
        facts["maps from"] = f"{structure.layer}, by {where}; laid out as {structure.layout.form}"
        facts["prefix tokens"] = structure.layout.prefix
        facts["normalization"] = structure.norm or "none"
    facts["picture"] = _input(network.preprocessing)
    facts["linear layer"] = entry.family.linear
    facts["classes"] = network.classes
    facts["exact maps"] = "yes" if entry.family.refusal is None else f"no: {entry.family.refusal}"
    facts["stride-16 tensor"] = _tensor(network.trunk, tensor, side) if tensor else "none: camlake foreground needs one"
    return facts


def _input(expected: Preprocessing) -> str:
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (expected.mean, expected.std))
    side = expected.image_size
    return (
        f"whole, squashed to {side}×{side}, {expected.interpolation}, mean {mean}, deviation {std}; never cropped, for"
        " boxes lie in the whole picture"
    )


def _tensor(trunk: nn.Module, name: str, side_px: int) -> str:
    rows, columns = stride16_hw(trunk, name, side_px)
    return f"{name}, {rows}×{columns}"
