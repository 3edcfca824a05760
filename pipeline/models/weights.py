"""Weights and class labels: torchvision's by name, or a file at any URL that may say itself what it is."""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torchvision
from torchvision.models import ResNet50_Weights, WeightsEnum

from pipeline.models.architecture import Architecture
from pipeline.models.box_head import has_box_head
from pipeline.models.checkpoint import WeightsFile, label_list, read_checkpoint, read_local, shown
from pipeline.models.convert import convert
from pipeline.models.loading import State, architecture_of, fit_state
from pipeline.models.network import Preprocessing
from pipeline.models.registry import DEMO, check, family_of, in_words, official_weights, preprocessing_of, source_of
from schemas.errors import ModelError

DEFAULT_MODEL = "resnet50"
"""The network where neither the user nor a card names one."""
DEMO_WEIGHTS = Path(__file__).with_name(f"{DEMO}.safetensors")

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


@dataclass(frozen=True)
class Pretrained:
    """Values that training starts from."""

    state: State
    """Whole, for just the architecture that was asked for."""
    new: tuple[str, ...]
    """Keys of the parameters that have random values."""
    source: str
    sha256: str
    preprocessing: Preprocessing
    """What the layers that were taken expect of the input."""


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
    if _is_name(weights):
        model = model or DEFAULT_MODEL
        file, source, entry = _by_name(model, weights)
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


def load_pretrained(architecture: Architecture, weights: str = "DEFAULT", read: Read = read_local) -> Pretrained:
    """Return values to start training ``architecture`` from: pretrained layers, and a last layer that is always new.

    ``weights`` is DEFAULT or another of torchvision's names for the network that ``source_of`` names, or the URL of a
    file with that network's state or with an earlier checkpoint of the network itself. Raises ModelError where there
    are no such weights, they can't be read, or they fit no layer of the network.
    """
    check(architecture)
    name = architecture.name
    if _is_name(weights):
        origin = name if name == DEMO else source_of(name)
        if origin is None:
            raise ModelError(
                f"--weights {weights}: torchvision has none for {name}; allowed: --weights none, or a file"
            )
        file, source, entry = _by_name(origin, weights, whole=origin == name)
    else:
        file, source, entry = read_checkpoint(weights, read), shown(weights), None
    converted = convert(architecture, file.state)
    preprocessing = file.card.preprocessing if file.card else preprocessing_of(name, entry)
    return Pretrained(converted.state, converted.new, source, file.sha256, preprocessing)


def model_digest(model: str, weights_sha256: str, preprocessing: Preprocessing, resize: str) -> str:
    """Return a SHA-256, 64 hex digits, that changes with whatever decides what the network says of an image."""
    parts = {"model": model, "weights": weights_sha256, "preprocessing": asdict(preprocessing), "resize": resize}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_name(weights: str) -> bool:
    """Return whether ``weights`` can only be a name, not a file."""
    return not ("." in weights or "/" in weights)


def _by_name(model: str, weights: str, whole: bool = True) -> tuple[WeightsFile, str, WeightsEnum | None]:
    """Return torchvision's weights of that name, downloaded where need be, or the demo's; where ``whole``, complete."""
    if model == DEMO:
        if weights != "DEFAULT":
            raise ModelError(f"--weights {weights!r} of {DEMO}: allowed: DEFAULT, or a .safetensors, .pt or .pth file")
        return _read_demo(), DEMO_WEIGHTS.name, None
    entries = official_weights(model) if whole else list(torchvision.models.get_model_weights(model))
    if not entries:
        raise ModelError(
            f"--weights {weights}: there are no trained ones of {model}; `camlake train` makes a file for --weights"
        )
    names = ["DEFAULT", *(entry.name for entry in entries)]
    if weights not in names:
        raise ModelError(
            f"--weights {weights!r} of {model}: allowed: {', '.join(names)}, or a .safetensors, .pt or .pth file"
        )
    entry = type(entries[0]).DEFAULT if weights == "DEFAULT" else entries[names.index(weights) - 1]
    return read_checkpoint(str(_downloaded(model, entry))), str(entry), entry


def _named_by(file: WeightsFile, model: str | None, source: str) -> str:
    """Return the network of a file: the one asked for, which must be the one on its card, if it has one."""
    on_card = file.card.architecture.name if file.card else None
    if model and on_card and model != on_card:
        raise ModelError(f"--model {model}: {source} holds {on_card}, as its card says; leave --model out")
    name = model or on_card
    if name is None:
        raise ModelError(f"{source} has no card that names its network: name it with --model")
    return name


def _downloaded(model: str, entry: WeightsEnum) -> Path:
    """Return the file of torchvision's weights in torch's cache, fetched if it is not there and checked by its hash."""
    name = Path(urlsplit(entry.url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    stated = re.search(r"-([0-9a-f]{8,})\.", name)
    prefix = stated[1] if stated else None
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(path), prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights {entry.name} of {model} can't be downloaded from {entry.url} ({error}); "
                f"fetch them elsewhere and give the file with --weights"
            ) from error
    return path


def _read_demo() -> WeightsFile:
    if not DEMO_WEIGHTS.exists():
        raise ModelError(
            f"{DEMO_WEIGHTS} is missing: install camlake anew, or make it with `python -m jobs.train_demo`"
        )
    return read_checkpoint(str(DEMO_WEIGHTS))


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
