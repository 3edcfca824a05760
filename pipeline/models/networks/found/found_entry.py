"""The entry of a network whose structure was found."""

from collections.abc import Callable, Mapping

from torch import nn

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.entry import NetworkEntry, PublishedWeights
from pipeline.models.networks.family import Family
from pipeline.models.networks.found.finding import find_structure
from pipeline.models.networks.network import Preprocessing
from schemas.errors import ModelError


def found_entry(
    name: str,
    module: nn.Module,
    construct: Callable[[Architecture], nn.Module],
    preprocessing: Preprocessing,
    list_weights: Callable[[], Mapping[str, PublishedWeights]],
    layers: tuple[str, str] | None,
) -> NetworkEntry:
    """Return the entry of a network like ``module``, as ``construct`` builds them.

    The values of ``module`` are changed. ``layers`` are the names of the layers between which the user cuts it. Raises
    ModelError, which names the network and says what was seen, where it can't be cut into feature maps and a head.
    """
    try:
        structure = find_structure(module, preprocessing.image_size, layers)
    except ModelError as error:
        raise ModelError(f"{name} has no exact class activation map: {error}") from error
    except Exception as error:  # The network's own code may raise anything.
        side, why = preprocessing.image_size, " ".join(str(error).split())
        raise ModelError(
            f"--model {name}: fails at random inputs of {side}×{side} pixels: {type(error).__name__}: {why}"
        ) from error
    family = Family(
        "", structure.linear, structure.about, structure.norm, refusal=structure.refusal, cutter=structure.cut
    )
    return NetworkEntry(
        name,
        construct,
        {"gap": family},
        source=name,
        list_weights=list_weights,
        own_preprocessing=preprocessing,
        default_classes=structure.classes,
    )
