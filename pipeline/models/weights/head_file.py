"""A linear head as a file: its weights for each class, the backbone it belongs to, and how well it did.

A file is a safetensors file with the tensors ``weight`` (C, K), ``bias`` (C,) and ``threshold`` (C,), float32, and a
card, as JSON under the key ``camlake.head`` of its header. The weights take the raw vectors of ``features``: the
scaling of the fit is folded in.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from schemas.errors import ModelError, UsageError
from schemas.url_secrets import safe_url

CARD_KEY = "camlake.head"
"""Key of the card in the file's metadata."""
Kind = Literal["logistic", "svm"]


@dataclass(frozen=True)
class HeadCard:
    """The facts that are needed to use a head, and those that tell how it was made."""

    model: str
    """The ``model`` partition of the features that it was fitted on: <name>-<digest8>."""
    model_digest: str
    """The whole digest of that backbone."""
    classes: tuple[str, ...]
    """Names of the C classes."""
    kind: Kind
    labels: str
    """Digest of the labels."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers of rows, and for each class its figures on held-out folds, in JSON's types."""


_CARD = TypeAdapter(HeadCard)


@dataclass(frozen=True, eq=False)
class Head:
    """A head with its card: the logit of class c is S_c = Σ_k weight[c, k] · feature_k + bias[c]."""

    card: HeadCard
    weight: NDArray[np.float32]
    """(C, K)."""
    bias: NDArray[np.float32]
    """(C,)."""
    threshold: NDArray[np.float32]
    """(C,) the probability from which on an image counts as one of the class."""

    @cached_property
    def digest(self) -> str:
        """SHA-256, 64 hex digits, of the card and the values."""
        found = hashlib.sha256(json.dumps(_CARD.dump_python(self.card, mode="json"), sort_keys=True).encode())
        for values in (self.weight, self.bias, self.threshold):
            found.update(np.ascontiguousarray(values, "<f4").tobytes())
        return found.hexdigest()

    def partition_digest(self, backbone: str) -> str:
        """Return the digest, 64 hex digits, of the rows that this head makes on the backbone of digest ``backbone``.

        It names their partition, so that rows of two heads, or of a head and the network's own classes, never mix.
        """
        return hashlib.sha256(f"{backbone} {self.digest}".encode()).hexdigest()

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return S (N, C) of ``features`` (N, K)."""
        found: NDArray[np.float32] = (features @ self.weight.T + self.bias).astype(np.float32, copy=False)
        return found


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities 1 / (1 + exp(-S)) of logits of any shape; no exponential overflows."""
    tail = np.exp(-np.abs(logits))
    found: NDArray[np.float32] = np.where(logits >= 0, 1, tail).astype(np.float32) / (1 + tail)
    return found


def head_bytes(head: Head) -> bytes:
    """Return the file of a head."""
    tensors = {"weight": head.weight, "bias": head.bias, "threshold": head.threshold}
    whole = {name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()}
    content: bytes = safetensors.numpy.save(whole, metadata={CARD_KEY: _CARD.dump_json(head.card).decode()})
    return content


def read_head(url: str, read: Callable[[str], bytes]) -> Head:
    """Return the head in a file; ``read`` returns its bytes. Raises ModelError where it is no whole head."""
    return head_of(read(url), safe_url(url))


def head_of(content: bytes, name: str) -> Head:
    """Return the head in a file's bytes; raises ModelError, which names the file ``name``, for other content."""
    try:
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        card = _CARD.validate_json(header["__metadata__"][CARD_KEY])
        values = [tensors[one] for one in ("weight", "bias", "threshold")]
    except (safetensors.SafetensorError, ValidationError, ValueError, KeyError) as error:
        raise ModelError(f"{name} is no whole file of `camlake head fit`") from error
    weight, bias, threshold = values
    classes = len(card.classes)
    fits = weight.ndim == 2 and classes > 0 and len(weight) == classes and bias.shape == threshold.shape == (classes,)
    if not fits or any(one.dtype != np.float32 or not np.isfinite(one).all() for one in values):
        raise ModelError(f"{name}: its values can't be meant; fit it anew with `camlake head fit`")
    return Head(card, weight, bias, threshold)


def refuse_other_backbone(head: Head, backbone: str, name: str, instead: str) -> None:
    """Raise UsageError where ``head``, the file ``name``, is for another backbone than that of digest ``backbone``.

    ``instead`` says in words what backbone there is, and what the user can do.
    """
    if head.card.model_digest != backbone:
        raise UsageError(f"--head {name}: was fitted on features of {head.card.model}, and {instead}")
