"""A weights file: tensors, and in a safetensors file that camlake wrote a card that describes them.

The card stands as JSON under the key ``camlake`` of the safetensors header. Nothing but tensors and plain values is
ever unpickled.
"""

import argparse
import hashlib
import io
import json
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PosixPath
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pipeline.models import registry
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.folder import FOLDER, read_folder
from pipeline.models.weights.saved_states import find_state
from pipeline.models.weights.state_fitting import State
from schemas.errors import ModelError
from schemas.label_text import parse_labels
from schemas.options.network_names import WEIGHTS_SUFFIXES, only_user_names
from schemas.options.train import Supervision
from schemas.url_secrets import safe_url

FILES = f"a {', '.join(WEIGHTS_SUFFIXES[:-1])} or {WEIGHTS_SUFFIXES[-1]} file, or {FOLDER}"
CARD_KEY = "camlake"
"""Key of the card in a safetensors file's metadata."""

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
"""Errors that torch.load raised for truncated and damaged files in tests, in addition to UnpicklingError."""


_SCALAR: Callable[..., Any] = cast("Callable[..., Any]", np.float64(0).__reduce__()[0])
_PLAIN_VALUES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    PosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
"""Plain values beside the tensors that torch.load may make: command lines, paths, metrics. None of them runs code."""


@dataclass(frozen=True)
class Card:
    """The facts that are needed to use trained weights."""

    architecture: Architecture
    labels: tuple[str, ...]
    """Names of the C classes, in the order of the logits."""
    preprocessing: Preprocessing
    multi_label: bool = False
    """Whether the probability of a class is the sigmoid of its logit; otherwise it is the softmax over all logits."""
    supervision: Supervision = "labels"
    """The truth that the network learned: labels alone, or labels and boxes; with boxes the state has a box head."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Other facts about the training, in JSON's types: digest of the data, metrics, seed."""

    def json(self) -> str:
        """Return the card as the text of a JSON object."""
        return _CARD.dump_json(self, indent=2).decode()


_CARD = TypeAdapter(Card)


@dataclass(frozen=True)
class WeightsFile:
    """The contents of a weights file."""

    state: State
    card: Card | None
    labels: tuple[str, ...] | None
    """Names of the C classes: those of the card or of the metadata key ``labels``, or those published with the file."""
    preprocessing: Preprocessing | None
    """The preprocessing that the weights expect, from the card or the publisher; None where neither has it."""
    source: str
    """Name of the file in an output's lineage: its URL without secrets, or the name of the weights."""
    sha256: str
    """SHA-256 of the file's bytes, 64 hex digits."""
    key: str | None = None
    """Key of the state dict in the file; None where the file has no other state dict."""

    @property
    def description(self) -> str:
        """``source``, followed by the key of the state dict where there is one."""
        return f"{self.source} ({self.key})" if self.key else self.source


def read_local(path: str) -> bytes:
    """Return the bytes of a local file; raise ModelError where the file can't be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}") from error


def checkpoint_bytes(state: Mapping[str, Tensor], card: Card) -> bytes:
    """Return the bytes of a safetensors file with ``state`` and ``card``, from which ``load_weights`` loads everything.

    Raises ValueError where the card has another number of labels than of classes.
    """
    if len(card.labels) != card.architecture.classes:
        raise ValueError(f"{len(card.labels)} labels for {card.architecture.classes} classes")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    content: bytes = safetensors.torch.save(tensors, metadata={CARD_KEY: _CARD.dump_json(card).decode()})
    return content


def read_checkpoint(url: str, read: Callable[[str], bytes] = read_local, key: str | None = None) -> WeightsFile:
    """Return the contents of a weights file, whose name ends in one of ``WEIGHTS_SUFFIXES``, or of ``read_folder``.

    ``read`` returns the bytes of the file at a URL; its exceptions pass through. ``key`` chooses among the state dicts
    of a file, see ``find_state``. Raises ModelError, which ends the run, where the file has another suffix, is damaged,
    has no state dict (of that key), needs other classes to be unpickled, or has a card that can't be used.
    """
    name = (urlsplit(url).path if url.lower().startswith(("http://", "https://")) else url).lower()
    if not name.endswith(WEIGHTS_SUFFIXES):
        folder = read_folder(url, read, FILES)
        inside = read_checkpoint(folder.file, lambda _: folder.content, key)
        labels, preprocessing = inside.labels or folder.labels, inside.preprocessing or folder.preprocessing
        return replace(inside, labels=labels, preprocessing=preprocessing)
    content = read(url)
    if name.endswith(".safetensors"):
        try:
            loaded = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise ModelError(f"--weights {safe_url(url)} is no whole safetensors file: {error}") from error
        metadata = _metadata(content)
        card = _card_inside(metadata, url)
        labels = card.labels if card else _labels_inside(metadata, url)
    else:
        loaded, card, labels = _unpickled(content, url), None, None
    found = find_state(loaded, key, safe_url(url))
    preprocessing, digest = card.preprocessing if card else None, hashlib.sha256(content).hexdigest()
    return WeightsFile(found.state, card, labels, preprocessing, safe_url(url), digest, found.key)


def _unpickled(content: bytes, url: str) -> Any:
    """Return the value that torch.save wrote; only tensors and plain values are unpickled."""
    if content.startswith(b"PK") and b"/constants.pkl" in content:  # torch.jit.save alone writes such a member.
        refusal = f"--weights {safe_url(url)} is a TorchScript program, and none is run; save model.state_dict()"
        raise ModelError(refusal)
    try:
        with torch.serialization.safe_globals(_PLAIN_VALUES):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED_CLASS.search(str(error))
        raise ModelError(
            f"--weights {safe_url(url)} is no plain state dict, and nothing else is unpickled"
            f"{f': it holds {refused[1]}' if refused else ''}; save model.state_dict()"
        ) from error
    except _NOT_TORCH_SAVE as error:
        raise ModelError(f"--weights {safe_url(url)} is no whole file of torch.save") from error


_REFUSED_CLASS = re.compile(r"GLOBAL ([\w.]+)")
"""torch's words for a class that ``weights_only`` refuses; torch has no attribute for its name."""


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file: 8 bytes hold the length of its JSON header, which follows them."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def _card_inside(metadata: dict[str, str], url: str) -> Card | None:
    text = metadata.get(CARD_KEY)
    if text is None:
        return None
    try:
        card = _CARD.validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise ModelError(f"the card of {safe_url(url)} can't be read: {where}: {problem['msg']}") from error
    if not only_user_names(card.architecture.name):  # Those are built where the user names them: see load_weights.
        registry.check(card.architecture)
    if not card.preprocessing.can_be_meant:
        raise ModelError(f"the card of {safe_url(url)} has a preprocessing that can't be meant: {card.preprocessing}")
    return card


def _labels_inside(metadata: dict[str, str], url: str) -> tuple[str, ...] | None:
    text = metadata.get("labels")
    try:
        return None if text is None else parse_labels(text.encode())
    except ValueError as error:
        raise ModelError(f"metadata key 'labels' of {safe_url(url)}: {error}") from error
