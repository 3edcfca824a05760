"""Networks of the user's own code: ``package.module:function``, which returns an ``nn.Module``.

The function may take ``num_classes``, for training with other classes. The network may have a dict ``pretrained_cfg``
with ``input_size``, ``mean``, ``std`` and ``interpolation``, as timm's networks have; without one it takes ImageNet's
input.
"""

import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.entry import NetworkEntry, PublishedWeights
from pipeline.models.networks.found.found_entry import found_entry
from pipeline.models.networks.found.input_facts import preprocessing_of
from schemas.errors import ModelError
from schemas.options.network_names import Reference


@cache
def own_entry(name: str, reference: Reference) -> NetworkEntry:
    """Return the entry of a network of the user's own code; ``name`` is its whole name, as for ``--model``.

    Raises ModelError where the function can't be imported, returns no network, or returns one that can't be cut.
    """
    assert reference.own is not None
    function = _function(reference.own)
    module = _built(reference.own, function, None)
    preprocessing = preprocessing_of(getattr(module, "pretrained_cfg", None) or {}, f"--model {reference.own}")
    given = PublishedWeights(
        f"the values that {reference.own} returns",
        reference.own,
        preprocessing,
        load=partial(_values, reference.own, function),
    )
    return found_entry(
        name,
        module,
        partial(_construct, reference.own, function),
        preprocessing,
        lambda: {"DEFAULT": given},
        reference.layers,
    )


def _values(own: str, function: Callable[..., Any]) -> dict[str, Tensor]:
    return _built(own, function, None).state_dict()


def _function(own: str) -> Callable[..., Any]:
    module_name, _, function_name = own.partition(":")
    if importlib.util.find_spec(module_name.partition(".")[0]) is None and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelError(
            f"--model {own}: {module_name} can't be imported ({error}); run where it is, install it, or on a cluster"
            " send it as Ray's working_dir or py_modules"
        ) from error
    except Exception as error:  # The user's code may raise anything.
        raise ModelError(f"--model {own}: {module_name} fails when it is imported: {_in_one_line(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelError(f"--model {own}: {module_name} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _built(own: str, function: Callable[..., Any], classes: int | None) -> nn.Module:
    options = {} if classes is None else {"num_classes": classes}
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        needs = (
            "to be called without arguments" if classes is None else "a parameter num_classes, to learn other classes"
        )
        raise ModelError(f"--model {own}: its function needs {needs} ({error})") from error
    try:
        module = function(**options)
    except Exception as error:  # The user's code may raise anything.
        raise ModelError(f"--model {own}: its function fails: {_in_one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"--model {own}: returns a {type(module).__name__}; allowed: a torch.nn.Module")
    return copy.deepcopy(module)  # The function may return the same network each time, and ours is changed.


def _construct(own: str, function: Callable[..., Any], architecture: Architecture) -> nn.Module:
    """Return the network as the function gives it, or with the classes of ``architecture`` where it takes any."""
    takes_classes = "num_classes" in inspect.signature(function).parameters
    return _built(own, function, architecture.classes if takes_classes else None)
