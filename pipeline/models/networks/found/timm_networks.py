"""The classifiers of timm, by timm's own names; timm is an optional extra and is imported only when it is asked for."""

import difflib
import importlib.util
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.entry import NetworkEntry, PublishedWeights
from pipeline.models.networks.found.found_entry import found_entry
from pipeline.models.networks.found.input_facts import preprocessing_of
from pipeline.models.networks.network import Preprocessing
from schemas.errors import ModelError
from schemas.options.network_names import Reference


@cache
def timm_entry(name: str, reference: Reference) -> NetworkEntry:
    """Return the entry of a network of timm, by building it; ``name`` is its whole name, as for ``--model``.

    Raises ModelError where timm is not installed, where it does not know the name (with the nearest that it knows), and
    where the network can't be cut.
    """
    own_name = reference.timm
    assert own_name is not None
    config = _config(own_name)
    preprocessing = preprocessing_of(config.to_dict(), name)
    return found_entry(
        name,
        _construct(own_name, Architecture(name, classes=config.num_classes or 1000)),
        partial(_construct, own_name),
        preprocessing,
        partial(_published, own_name, preprocessing),
        reference.layers,
    )


def _timm() -> Any:
    if importlib.util.find_spec("timm") is None:
        raise ModelError("--model timm/NAME: timm is not installed; `pip install 'camlake[timm]'`")
    import timm  # noqa: PLC0415 - an optional extra, and nobody else should wait for it

    return timm


def _config(own_name: str) -> Any:
    """Return timm's facts about the weights of a network and what they expect of the input."""
    timm = _timm()
    base, _, tag = own_name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=1)
        hint = f"did you mean timm/{near[0]}?" if near else "`timm.list_models()` lists all"
        raise ModelError(f"timm {timm.__version__} knows no network {base!r}; {hint}")
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ModelError(f"timm has no weights {tag!r} of {base}; allowed: {', '.join(tags) or 'none'}")
    config = timm.get_pretrained_cfg(own_name)
    if config is None:
        raise ModelError(f"timm says nothing about the input of {base}; use another of its networks")
    return config


def _construct(own_name: str, architecture: Architecture) -> nn.Module:
    module: nn.Module = _timm().create_model(own_name, num_classes=architecture.classes)
    return module


def _published(own_name: str, preprocessing: Preprocessing) -> Mapping[str, PublishedWeights]:
    """Return the weights that timm's hub has of a network, by their tags; the default ones first."""
    timm = _timm()
    base, _, tag = own_name.partition(".")
    tags = [tag] if tag else [one.partition(".")[2] for one in timm.list_pretrained(f"{base}.*")]
    default = timm.get_pretrained_cfg(own_name).tag or ""
    found = {one: _weights(f"{base}.{one}") for one in tags if one}
    first = {"DEFAULT": found[default]} if default in found else {}
    return first | found


def _weights(tagged: str) -> PublishedWeights:
    timm = _timm()
    config = timm.get_pretrained_cfg(tagged)
    preprocessing = preprocessing_of(config.to_dict(), f"timm/{tagged}")
    location = config.hf_hub_id or config.url or tagged
    labels = _labels(config.num_classes, config.label_names)
    whole = bool(config.num_classes)
    return PublishedWeights(f"timm/{tagged}", str(location), preprocessing, labels, whole, partial(_loaded, tagged))


def _labels(classes: int, given: Any) -> tuple[str, ...] | None:
    """Return the names of the classes, as the card has them or as timm knows them of ImageNet's parts."""
    if given:
        return tuple(map(str, given))
    data = _timm().data
    subset = data.infer_imagenet_subset({"num_classes": classes})
    if classes == 1000 or subset is None:
        return None
    info = data.ImageNetInfo(subset)
    return tuple(info.index_to_description(number) for number in range(classes))


def _loaded(tagged: str) -> dict[str, Tensor]:
    """Return the weights through timm's own loader, which downloads them into its cache if they are not there."""
    timm = _timm()
    try:
        state: dict[str, Tensor] = timm.create_model(tagged, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"timm can't load the weights {tagged} ({reason}); fetch them elsewhere and give the file with --weights"
        ) from error
    return state
