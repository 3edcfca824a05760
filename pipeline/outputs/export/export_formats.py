"""Finds the formats of ``camlake export``: the files of ``formats/``, by their names. Imports nothing heavy."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from schemas.errors import UsageError

_FORMATS = Path(__file__).with_name("formats")


def format_names() -> list[str]:
    """Return the names of the formats."""
    return sorted(module.name for module in pkgutil.iter_modules([str(_FORMATS)]))


def format_module(name: str) -> ModuleType:
    """Return the module of a format; raises UsageError for an unknown one."""
    if name not in format_names():
        raise UsageError(f"--to {name!r}: allowed: {', '.join(format_names())}")
    return importlib.import_module(f"{__package__}.{_FORMATS.name}.{name}")
