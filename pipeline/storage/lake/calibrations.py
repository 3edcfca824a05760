"""Reads and writes the calibrations of an output, one a model: ``<root>/_calibrations/model=<name>.json``."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration, calibration_of
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.records import committed_settings
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from schemas.errors import StoreError, UsageError
from schemas.options.annotate import FIRST_LOCALIZATION
from schemas.options.box_rules import FIRST_BOXES
from schemas.options.config import StorageConfig
from schemas.runs import spelled
from schemas.url_secrets import safe_url

FOLDER = "_calibrations"
RULE = ("threshold", "box_rule", "min_area", "foreground")
"""The settings by which boxes are cut from maps."""


def calibration_path(root: str, model: str) -> str:
    """Return the path of the calibration of ``model``, <name>-<digest8>."""
    return posixpath.join(root, FOLDER, f"model={model}.json")


def write_calibration(
    fs: AbstractFileSystem, root: str, model: str, calibration: Calibration, settings: Mapping[str, Any]
) -> None:
    """Write a calibration, over an earlier one; raises StoreError where the store refuses.

    ``settings`` are the settings of the run whose boxes fitted the calibration.
    """
    document = json.dumps(calibration.document() | {"localization": _localization(settings)}, indent=1)
    write_whole(fs, calibration_path(root, model), document.encode())


def read_calibration(fs: AbstractFileSystem, root: str, model: str, settings: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration of ``model``, None where the output has none.

    Raises StoreError where it can't be read, where another version of camlake wrote it, and where it was fitted on maps
    that were made with other settings than ``settings``.
    """
    path = calibration_path(root, model)
    content = read_whole(fs, path)
    if content is None:
        return None
    try:
        document = json.loads(content)
        calibration, fitted = calibration_of(document), _localization(document.get("localization", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: no calibration of this version; make it anew with evaluate --calibrate") from error
    if fitted != _localization(settings):
        shown = f"fitted on boxes made with {_shown(fitted)}, not {_shown(settings)}"
        raise StoreError(f"{path}: {shown}; make it anew, or remove it")
    return calibration


def calibration_in(url: str, storage: StorageConfig, model: str, settings: Mapping[str, Any]) -> Calibration:
    """Return the calibration of ``model`` in another output (``--calibration``), for boxes made with ``settings``.

    Raises UsageError where there is none or where it is for boxes of another rule, StoreError as read_calibration does.
    """
    where = safe_url(url)
    place = connect(url, storage, anonymous=storage.anonymous)
    fitted_on = committed_settings(*place, model)
    found = read_calibration(*place, model, settings) if fitted_on else None
    if fitted_on is None or found is None:
        raise UsageError(f"--calibration {where}: has none of {model}; `camlake evaluate --calibrate` makes one")
    fitted_on, asked = FIRST_BOXES | fitted_on, FIRST_BOXES | dict(settings)
    for name in RULE:
        if fitted_on.get(name) != asked.get(name):
            raise UsageError(
                f"--calibration {where}: fitted on boxes of --{name.replace('_', '-')} {spelled(fitted_on.get(name))},"
                f" not {spelled(asked.get(name))}"
            )
    return found


def _localization(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by which maps are made."""
    return {name: settings.get(name, first) for name, first in FIRST_LOCALIZATION.items()}


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"--{name} {value}" for name, value in _localization(settings).items())
