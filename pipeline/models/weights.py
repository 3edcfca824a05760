"""Weights and class labels: torchvision's by name, or a file at any URL. Nothing but tensors is ever unpickled."""

import hashlib
import io
import json
import pickle
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights, WeightsEnum

from pipeline.models.network import Preprocessing
from pipeline.models.registry import (
    DEMO,
    State,
    count_classes,
    family_of,
    fit_state,
    official_weights,
    preprocessing_of,
)
from schemas.errors import ModelError

DEMO_WEIGHTS = Path(__file__).with_name(f"{DEMO}.safetensors")
STATE_KEYS = ("state_dict", "model")
"""Keys under which training scripts put the state dict, beside optimizer and epoch."""


_NOT_TORCH_SAVE = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    struct.error,
)
"""What torch.load was seen to raise over cut and garbled files, beside UnpicklingError: it checks as it goes."""


@dataclass(frozen=True)
class Weights:
    """Weights that fit their network, and where they come from."""

    state: State
    """Float32 under torchvision's names, on the CPU."""
    source: str
    """URL without query and credentials, or torchvision's name of the weights."""
    sha256: str
    """Of the file's bytes, hex."""
    labels: tuple[str, ...]
    """Names of the C classes, in the order of the logits."""
    preprocessing: Preprocessing
    """What these weights expect of the input."""


@dataclass(frozen=True)
class _File:
    """A weights file as read."""

    state: State
    labels: tuple[str, ...] | None
    sha256: str


def read_local(path: str) -> bytes:
    """Return the bytes of a local file; raises ModelError where it can't be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}") from error


def load_weights(
    model: str, weights: str, labels_path: str | None, read: Callable[[str], bytes] = read_local
) -> Weights:
    """Return the weights of ``model``, checked against its architecture, with one label for each class.

    ``weights`` is DEFAULT or another of torchvision's names (the official download, kept in torch's cache), or the URL
    of a .safetensors file or of a .pt or .pth state dict. ``labels_path`` is a file of names, one a line or a JSON
    list; without it the labels are those of torchvision, of the safetensors file's metadata key ``labels`` (a JSON
    list), or, for 1000 classes, ImageNet's. ``read`` returns the bytes of both files; what it raises passes through.

    Raises ModelError where the network is unknown or refused, a file can't be reached or read or holds anything but
    tensors, the tensors are another network's, or labels are missing or of another number than the classes.
    """
    family_of(model)
    entry = _official(model, weights)
    if entry is not None:
        file, source = _parsed(str(_downloaded(model, entry)), read_local), str(entry)
    elif model == DEMO and weights == "DEFAULT":
        file, source = _read_demo(), DEMO_WEIGHTS.name
    else:
        file, source = _parsed(weights, read), shown(weights)
    state = fit_state(model, file.state)
    labels = _read_labels(labels_path, read) if labels_path else file.labels
    classes = count_classes(model, state)
    if labels is None:
        labels = _known_labels(entry, classes, source)
    if len(labels) != classes:
        raise ModelError(
            f"{len(labels)} labels for the {classes} classes of {source}: give one name a class with --labels"
        )
    return Weights(state, source, file.sha256, labels, preprocessing_of(model, entry))


def model_digest(model: str, weights_sha256: str, preprocessing: Preprocessing, resize: str) -> str:
    """Return a SHA-256, 64 hex digits, that changes with whatever decides what the network says of an image."""
    parts = {"model": model, "weights": weights_sha256, "preprocessing": asdict(preprocessing), "resize": resize}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def shown(url: str) -> str:
    """Return ``url`` as messages and lineage may show it: without user and password, over HTTP without the query."""
    bare = re.sub(r"(://)[^/@]*@", r"\1", url)
    return re.sub(r"(https?://[^?#]*)[?#].*", r"\1", bare)


def _official(model: str, weights: str) -> WeightsEnum | None:
    """Return the torchvision weights of that name; None where ``weights`` is a file or camlake's own."""
    if "." in weights or "/" in weights:
        return None
    entries = official_weights(model)
    if weights == "DEFAULT":
        return type(entries[0]).DEFAULT if entries else None
    names = [entry.name for entry in entries]
    if weights in names:
        return entries[names.index(weights)]
    raise ModelError(
        f"--weights {weights!r} of {model}: allowed: {', '.join(['DEFAULT', *names])}, "
        "or a .safetensors, .pt or .pth file"
    )


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


def _read_demo() -> _File:
    if not DEMO_WEIGHTS.exists():
        raise ModelError(
            f"{DEMO_WEIGHTS} is missing: install camlake anew, or make it with `python -m jobs.train_demo`"
        )
    return _parsed(str(DEMO_WEIGHTS), read_local)


def _parsed(url: str, read: Callable[[str], bytes]) -> _File:
    suffix = Path(shown(url)).suffix.lower()
    if suffix not in (".safetensors", ".pt", ".pth"):
        raise ModelError(f"--weights {shown(url)}: allowed: a .safetensors, .pt or .pth file")
    content = read(url)
    digest = hashlib.sha256(content).hexdigest()
    if suffix == ".safetensors":
        try:
            return _File(safetensors.torch.load(content), _labels_inside(content, url), digest)
        except safetensors.SafetensorError as error:
            raise ModelError(f"--weights {shown(url)} is no whole safetensors file: {error}") from error
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"--weights {shown(url)} is no plain state dict, and nothing else is unpickled; save model.state_dict()"
        ) from error
    except _NOT_TORCH_SAVE as error:
        raise ModelError(f"--weights {shown(url)} is no whole file of torch.save") from error
    return _File(_state_inside(loaded, url), None, digest)


def _state_inside(loaded: Any, url: str) -> State:
    for key in STATE_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise ModelError(f"--weights {shown(url)} holds a {type(loaded).__name__}, not a state dict")
    for key, value in loaded.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"--weights {shown(url)} is no state dict: {key!r} is a {type(value).__name__}, not a tensor"
            )
    return dict(loaded)


def _labels_inside(content: bytes, url: str) -> tuple[str, ...] | None:
    """Return the labels of a safetensors file: its metadata stand in a JSON header behind 8 bytes of its length."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get("labels")
    return None if text is None else _label_list(text, f"metadata key 'labels' of {shown(url)}")


def _read_labels(path: str, read: Callable[[str], bytes]) -> tuple[str, ...]:
    try:
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"--labels {shown(path)} is not UTF-8 text") from error
    if text.lstrip().startswith("["):
        return _label_list(text, f"--labels {shown(path)}")
    return tuple(line.strip() for line in text.rstrip().splitlines())


def _label_list(text: str, place: str) -> tuple[str, ...]:
    try:
        labels = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(f"{place} is no JSON list: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelError(f"{place} is no JSON list of names")
    return tuple(labels)


def _known_labels(entry: WeightsEnum | None, classes: int, source: str) -> tuple[str, ...]:
    imagenet = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    if entry is not None:
        return tuple(entry.meta["categories"])
    if classes == len(imagenet):
        return tuple(imagenet)
    raise ModelError(f"{source} has {classes} classes and no names for them: give one name a class with --labels")
