"""The weights of a network and the names of its classes, by name or from a file at any URL."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torchvision.models import ResNet50_Weights

from pipeline.models import registry
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.box_head import has_box_head
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.checkpoint import WeightsFile, read_checkpoint, read_local
from pipeline.models.weights.published import read_published
from pipeline.models.weights.state_fitting import State, architecture_of, fit_state
from schemas.errors import ModelError
from schemas.label_text import parse_labels
from schemas.options.network_names import names_weights, only_user_names
from schemas.url_secrets import safe_url

DEFAULT_MODEL = "resnet50"
"""The network where neither the user nor a card names one."""
Read = Callable[[str], bytes]
"""Returns the bytes of a file at a URL."""


@dataclass(frozen=True)
class Weights:
    """Weights that fit their network, with the names of their classes and their origin."""

    architecture: Architecture
    state: State
    """Float32 under the network's own names, on the CPU."""
    source: str
    """URL without query and credentials, with the key of the state dict where the file has several; or a name."""
    sha256: str
    """SHA-256 of the file's bytes, 64 hex digits."""
    key: str | None
    """Key of the state dict in the file; None where the file has no other state dict."""
    labels: tuple[str, ...]
    """Names of the C classes, in the order of the logits."""
    preprocessing: Preprocessing
    """The preprocessing that these weights expect."""
    multi_label: bool = False
    """Whether the probability of a class is the sigmoid of its logit; otherwise it is the softmax over all logits."""


def load_weights(
    model: str | None,
    weights: str,
    labels_path: str | None,
    read: Read = read_local,
    *,
    key: str | None = None,
    exact_maps: bool = True,
) -> Weights:
    """Return the weights of ``model``, checked against its architecture, with one label for each class.

    ``weights`` is DEFAULT or another of torchvision's names (the official download, kept in torch's cache), or the URL
    of a file, see ``read_checkpoint``; ``key`` chooses among the state dicts of a file. ``model`` None means the
    network that the file's card names, or resnet50. ``labels_path`` is the URL of a file of names, see
    ``parse_labels``; without it the labels are torchvision's, those of the file's card, those of a safetensors file's
    metadata key ``labels``, or, for 1000 classes, ImageNet's. ``read`` returns the bytes of both files; its exceptions
    pass through. ``exact_maps`` false admits networks that only classify.

    A network with one logit has the sigmoid of the logit as its probability. Of two labels it then takes the second,
    which names the positive class.

    Raises ModelError, which ends the run, where the network is unknown or refused; where a file can't be read or holds
    anything but tensors; where the tensors belong to another network or contradict their card; where labels are
    missing, of another number than the classes, or the weights' own labels in another order.
    """
    if model is not None:
        registry.get(model, exact_maps=exact_maps)
    if names_weights(weights):
        model = model or DEFAULT_MODEL
        file = read_published(model, registry.get(model).official_weights, weights, key)
    else:
        file = read_checkpoint(weights, read, key)
        model = _network_name(file, model)
    entry = registry.get(model, exact_maps=exact_maps)
    state = fit_state(entry, file.state)
    architecture = architecture_of(entry, state)
    _check_card(file, architecture, state)
    return Weights(
        architecture,
        state,
        file.description,
        file.sha256,
        file.key,
        _labels(labels_path, read, file, architecture.classes),
        file.preprocessing or entry.preprocessing,
        multi_label=architecture.classes == 1 or (file.card is not None and file.card.multi_label),
    )


def model_digest(
    model: str, weights_sha256: str, preprocessing: Preprocessing, resize: str, key: str | None = None
) -> str:
    """Return a SHA-256, 64 hex digits, of everything that decides the logits and maps of an image."""
    seen = asdict(preprocessing)
    if preprocessing.interpolation == "bilinear":  # So the digests of outputs without this fact stay as they are.
        del seen["interpolation"]
    parts = {"model": model, "weights": weights_sha256, "preprocessing": seen, "resize": resize}
    if key is not None:
        parts["key"] = key
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _network_name(file: WeightsFile, model: str | None) -> str:
    """Return ``model``, which must be the network on the file's card if there is a card, or else the card's network."""
    on_card = file.card.architecture.name if file.card else None
    if on_card and only_user_names(on_card) and model != on_card:
        what = "a folder or a name on the hub to load" if on_card.startswith("hf/") else "your code to run"
        raise ModelError(f"{file.source} holds the network of {on_card}, which is {what}: give --model {on_card}")
    if model and on_card and model != on_card:
        raise ModelError(f"--model {model}: {file.source} holds {on_card}, as its card says; leave --model out")
    name = model or on_card
    if name is None:
        raise ModelError(f"{file.source} has no card that names its network: name it with --model")
    return name


def _check_card(file: WeightsFile, architecture: Architecture, state: State) -> None:
    """Raise ModelError where a file's card contradicts its tensors."""
    if file.card is None:
        return
    if file.card.architecture != architecture:
        in_words = registry.get(architecture.name).in_words
        raise ModelError(
            f"{file.source} holds {in_words(architecture)}, but its card says {in_words(file.card.architecture)}"
        )
    if (file.card.supervision == "boxes") != has_box_head(state):
        holds = "a" if has_box_head(state) else "no"
        raise ModelError(
            f"{file.source} holds {holds} box head, but its card says supervision: {file.card.supervision}"
        )


def _labels(path: str | None, read: Read, file: WeightsFile, classes: int) -> tuple[str, ...]:
    """Return the names of the classes, from the file at ``path`` where the user gave one."""
    labels = _read_labels(path, read) if path else file.labels or _imagenet_labels(classes, file.source)
    if classes == 1 and len(labels) == 2:
        labels = labels[1:]
    if len(labels) != classes:
        raise ModelError(
            f"{len(labels)} labels for the {classes} classes of {file.source}: give one name a class with --labels"
        )
    if file.labels and labels != file.labels and sorted(labels) == sorted(file.labels):
        raise ModelError(
            f"--labels {safe_url(path or '')}: the names of {file.source} in another order; allowed: its own order, or"
            " no --labels, for it knows its names"
        )
    return labels


def _read_labels(path: str, read: Read) -> tuple[str, ...]:
    content = read(path)
    try:
        return parse_labels(content)
    except ValueError as error:
        raise ModelError(f"--labels {safe_url(path)}: {error}") from error


def _imagenet_labels(classes: int, source: str) -> tuple[str, ...]:
    imagenet = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    if classes == len(imagenet):
        return tuple(imagenet)
    raise ModelError(f"{source} has {classes} classes and no names for them: give one name a class with --labels")
