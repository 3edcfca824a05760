"""The names of networks that camlake has to look into: timm's, Hugging Face's, and those of the user's own code.

``timm/NAME`` is a network of timm, ``hf/FOLDER-OR-NAME`` an image classifier of transformers,
``package.module:function`` a function that returns an ``nn.Module``. Behind each may stand the two layers between which
the network is cut, ``[FEATURE,CLASSIFIER]``; so one name carries all that another process, a card or a later run needs.
"""

import re
from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from schemas.options.config import StorageConfig, option

_REFERENCE = re.compile(
    r"(?:timm/(?P<timm>[\w.-]+)|hf/(?P<hf>[\w./~-]+)|(?P<own>[A-Za-z_][\w.]*:[A-Za-z_]\w*))(?:\[(?P<feature>[\w.]+),(?P<classifier>[\w.]+)\])?"
)
FEATURE_LAYER_HELP = "layer of --model whose maps are averaged, by its dotted name; default: found by its structure"
CLASSIFIER_LAYER_HELP = "linear layer behind that average; given together with --feature-layer"


WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt", ".bin")
"""Ends of the names of weights files; all but the first are files of torch.save."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""How pictures are scaled to a network's input, as its weights expect it."""


class Reference(NamedTuple):
    """A name of a network that camlake has to look into, in its parts."""

    timm: str | None
    """Name as timm knows it."""
    hf: str | None
    """Folder, or name on Hugging Face's hub."""
    own: str | None
    """package.module:function."""
    layers: tuple[str, str] | None
    """Names of the layer that gives the last maps and of the linear layer, where the user named them."""


def reference_of(model: str) -> Reference | None:
    """Return the parts of a name; None where it is a name of another kind, which the registry knows."""
    match = _REFERENCE.fullmatch(model)
    if match is None:
        return None
    layers = (match["feature"], match["classifier"]) if match["feature"] else None
    return Reference(match["timm"], match["hf"], match["own"], layers)


def only_user_names(model: str) -> bool:
    """Return whether a file must not choose the network: it runs code, or loads a folder or a name on the hub."""
    reference = reference_of(model)
    return reference is not None and not reference.timm


def file_name_of(model: str) -> str:
    """Return a network's name with - in the place of what no name of a folder should have, such as / and :."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-")


def names_weights(weights: str) -> bool:
    """Return whether a value of ``--weights`` can only be a name, not a file."""
    return not ("." in weights or "/" in weights)


class NetworkLayers(StorageConfig):
    """The options that name the layers of a network; the name of the network then carries them."""

    feature_layer: str | None = option(None, FEATURE_LAYER_HELP, "Network")
    classifier_layer: str | None = option(None, CLASSIFIER_LAYER_HELP, "Network")

    @model_validator(mode="before")
    @classmethod
    def _in_the_name(cls, values: Any) -> Any:
        return with_layers(values, "model") if isinstance(values, dict) else values


def with_layers(values: dict[str, Any], field: str) -> dict[str, Any]:
    """Return ``values`` with the two layers in the name of the network, which is the value of ``field``.

    Raises ValueError, in words for the user, for one layer without the other and for a network that camlake knows.
    """
    feature, classifier = values.get("feature_layer"), values.get("classifier_layer")
    given = [one for one in (feature, classifier) if one is not None]
    if not given or not all(isinstance(one, str) for one in given):
        return values  # A value of another type is refused as that of any other option.
    if feature is None or classifier is None:
        flag, missing = ("--feature-layer", "--classifier-layer")[:: 1 if classifier is None else -1]
        raise ValueError(f"{flag} {given[0]}: allowed: together with {missing}")
    model = values.get(field)
    named = f"{model}[{feature},{classifier}]"
    if not isinstance(model, str) or reference_of(named) is None:
        raise ValueError(
            f"--feature-layer {feature}: allowed: with --{field} timm/NAME, hf/NAME or package.module:function,"
            f" here {model}"
        )
    rest = {name: value for name, value in values.items() if name not in ("feature_layer", "classifier_layer")}
    return {**rest, field: named}
