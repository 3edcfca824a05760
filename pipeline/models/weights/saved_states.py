"""Find the state dict of a network in the files of training scripts, by its key; averaged weights are preferred.

Scripts save the state dict beside the optimizer and the epoch, under various keys, and often a second state dict with
the averages of the weights over the steps (EMA). The averages are used, as in timm, and their key is reported.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.models.weights.state_fitting import State
from schemas.errors import ModelError

AVERAGED = (
    "state_dict_ema",
    "model_state_dict_ema",
    "model_ema_state_dict",
    "ema_model_state_dict",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "averaged_model",
    "swa_model",
    "params_ema",
    "teacher",
)
"""Keys of averaged weights in files of timm, torchvision's references, MMEngine, DINO, ema-pytorch and others."""
PLAIN = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "model_dict",
    "state",
    "net",
    "network",
    "net_state_dict",
    "module",
    "params",
    "weights",
    "online_model",
    "student",
)
"""Keys of other weights in files of Lightning, torchvision's references, PyTorch's tutorials, Composer and others."""
COUNTERS = frozenset({"n_averaged", "initted", "step", "steps", "num_updates", "updates", "decay"})
"""Values beside the weights in the state of a class that averages, such as torch's ``AveragedModel``."""

_AVERAGED_LAYER = re.compile(rf"(?:(?:module|_orig_mod|model)\.)*({'|'.join(AVERAGED)})\.")
"""Start of the name of a layer in the averaged copy that a training module holds beside the network."""


@dataclass(frozen=True)
class SavedState:
    """The state dict that was taken out of a file."""

    state: State
    key: str | None
    """Key of the state dict in the file; None where the file has no other state dict."""


def find_state(saved: Any, key: str | None, file: str) -> SavedState:
    """Return the state dict of a network in ``saved``, the content of a weights file.

    ``key`` is the key of a state dict, as ``--weights-key`` takes it, with dots between the keys of nested dicts. With
    None averaged weights are preferred to others. Raises ModelError, which ends the run and names ``file``, where there
    is no state dict, none under that key, more than one under unknown keys, or a value in it is no tensor.
    """
    if not isinstance(saved, Mapping):
        raise ModelError(f"--weights {file} holds a {type(saved).__name__}, not a state dict")
    found = {name: state for name, state in _states(saved, "") if state} or {"": dict(saved)}
    names = sorted(found, key=_rank)
    if key is not None:
        names = [name for name in names if name == key or name.startswith(f"{key}.")]
        if not names:
            allowed = ", ".join(filter(None, found)) or "no key, for the file is one state dict"
            raise ModelError(f"--weights-key {key}: {file} has no such state dict; allowed: {allowed}")
    elif len(names) > 1 and _rank(names[0]) == _rank(names[1]):
        raise ModelError(f"--weights {file} holds several state dicts: name one with --weights-key: {', '.join(names)}")
    state = found[names[0]]
    for layer, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(f"--weights {file} is no state dict: {layer!r} is a {type(value).__name__}, not a tensor")
    return SavedState(dict(state), names[0] if len(found) > 1 else None)


def _states(saved: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the state dicts in a dict with their keys, at any depth under known keys, or else under any key."""
    inner = {key: value for key, value in saved.items() if isinstance(value, Mapping)}
    known = [key for key in (*AVERAGED, *PLAIN) if key in inner]
    outer = f"{name}." if name else ""
    if known:
        for key in known:
            yield from _states(inner[key], f"{outer}{key}")
    elif any(isinstance(value, Tensor) for value in saved.values()):
        yield from _parts(saved, name)
    else:
        for key, value in inner.items():
            if value and all(isinstance(part, Tensor) for part in value.values()):
                yield from _parts(value, f"{outer}{key}")


def _parts(state: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a state dict, or the network and its averaged copy where one training module holds both."""
    averaged: dict[str, Any] = {}
    others: dict[str, Any] = {}
    words: set[str] = set()
    for key, value in state.items():
        match = _AVERAGED_LAYER.match(str(key))
        if match:
            words.add(match[1])
            averaged[key[match.end() :]] = value
        elif key not in COUNTERS:
            others[key] = value
    outer = f"{name}." if name else ""
    if averaged and others:
        firsts = {str(key).split(".")[0] for key in others}
        yield f"{outer}{min(words)}", averaged
        yield f"{outer}{next((word for word in PLAIN if word in firsts), 'others')}", others
    else:
        yield name, averaged or others


def _rank(name: str) -> tuple[bool, int]:
    """Return the place of a key in the order of preference: averaged weights first, unknown keys last."""
    words, order = name.split("."), (*AVERAGED, *PLAIN)
    known = [order.index(word) for word in words if word in order]
    return not set(words) & set(AVERAGED), min(known, default=len(order))
