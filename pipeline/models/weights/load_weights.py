"""Weights and class labels: torchvision's by name, or a file at any URL that may say itself what it is."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torchvision.models import ResNet50_Weights

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.box_head import has_box_head
from pipeline.models.networks.network import Preprocessing
from pipeline.models.registry import family_of, in_words, preprocessing_of
from pipeline.models.weights.checkpoint import WeightsFile, label_list, read_checkpoint, read_local, shown
from pipeline.models.weights.state_fitting import State, architecture_of, fit_state
from pipeline.models.weights.torchvision_weights import is_name, weights_by_name
from schemas.errors import ModelError

DEFAULT_MODEL = "resnet50"
"""The network where neither the user nor a card names one."""
Read = Callable[[str], bytes]
"""Returns the bytes of a file at a URL."""


@dataclass(frozen=True)
class Weights:
    """Weights that fit their network, and where they come from."""

    architecture: Architecture
    state: State
    """Float32 under the network's own names, on the CPU."""
    source: str
    """URL without query and credentials, or torchvision's name of the weights."""
    sha256: str
    """Of the file's bytes, hex."""
    labels: tuple[str, ...]
    """Names of the C classes, in the order of the logits."""
    preprocessing: Preprocessing
    """What these weights expect of the input."""
    multi_label: bool = False
    """Whether the sigmoid of each logit is its probability, rather than the softmax over all."""


def load_weights(
    model: str | None,
    weights: str,
    labels_path: str | None,
    read: Read = read_local,
    *,
    exact_maps: bool = True,
) -> Weights:
    """Return the weights of ``model``, checked against its architecture, with one label for each class.

    ``weights`` is DEFAULT or another of torchvision's names (the official download, kept in torch's cache), or the URL
    of a .safetensors file or of a .pt or .pth state dict. ``model`` None is the one that the file's card names, or
    resnet50. ``labels_path`` is a file of names, one a line or a JSON list; without it the labels are those of
    torchvision, of the file's card, of a safetensors file's metadata key ``labels`` (a JSON list), or, for 1000
    classes, ImageNet's. ``read`` returns the bytes of both files; what it raises passes through. ``exact_maps`` false
    admits networks that only classify.

    Raises ModelError where the network is unknown or refused, a file can't be reached or read or holds anything but
    tensors, the tensors are another network's or not what their card says, or labels are missing, of another number
    than the classes or the weights' own in another order.
    """
    if model is not None:
        family_of(model, exact_maps)
    if is_name(weights):
        model = model or DEFAULT_MODEL
        file, source, entry = weights_by_name(model, weights)
    else:
        file, source, entry = read_checkpoint(weights, read), shown(weights), None
        model = _named_by(file, model, source)
        family_of(model, exact_maps)
    state = fit_state(model, file.state)
    architecture = architecture_of(model, state)
    if file.card and file.card.architecture != architecture:
        raise ModelError(
            f"{source} holds {in_words(architecture)}, but its card says {in_words(file.card.architecture)}"
        )
    if file.card and (file.card.supervision == "boxes") != has_box_head(state):
        holds = "a" if has_box_head(state) else "no"
        raise ModelError(f"{source} holds {holds} box head, but its card says supervision: {file.card.supervision}")
    own = file.labels or (tuple(entry.meta["categories"]) if entry else None)
    labels = _read_labels(labels_path, read) if labels_path else own or _imagenet_labels(architecture.classes, source)
    if len(labels) != architecture.classes:
        raise ModelError(
            f"{len(labels)} labels for the {architecture.classes} classes of {source}: "
            "give one name a class with --labels"
        )
    if own and labels != own and sorted(labels) == sorted(own):
        raise ModelError(
            f"--labels {shown(labels_path or '')}: the names of {source} in another order; allowed: its own order, or"
            " no --labels, for it knows its names"
        )
    return Weights(
        architecture,
        state,
        source,
        file.sha256,
        labels,
        file.card.preprocessing if file.card else preprocessing_of(model, entry),
        multi_label=file.card is not None and file.card.multi_label,
    )


def model_digest(model: str, weights_sha256: str, preprocessing: Preprocessing, resize: str) -> str:
    """Return a SHA-256, 64 hex digits, that changes with whatever decides what the network says of an image."""
    parts = {"model": model, "weights": weights_sha256, "preprocessing": asdict(preprocessing), "resize": resize}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _named_by(file: WeightsFile, model: str | None, source: str) -> str:
    """Return the network of a file: the one asked for, which must be the one on its card, if it has one."""
    on_card = file.card.architecture.name if file.card else None
    if model and on_card and model != on_card:
        raise ModelError(f"--model {model}: {source} holds {on_card}, as its card says; leave --model out")
    name = model or on_card
    if name is None:
        raise ModelError(f"{source} has no card that names its network: name it with --model")
    return name


def _read_labels(path: str, read: Read) -> tuple[str, ...]:
    try:
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"--labels {shown(path)} is not UTF-8 text") from error
    if text.lstrip().startswith("["):
        return label_list(text, f"--labels {shown(path)}")
    return tuple(line.strip() for line in text.rstrip().splitlines())


def _imagenet_labels(classes: int, source: str) -> tuple[str, ...]:
    imagenet = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    if classes == len(imagenet):
        return tuple(imagenet)
    raise ModelError(f"{source} has {classes} classes and no names for them: give one name a class with --labels")
