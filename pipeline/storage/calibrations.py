"""Where an output keeps the calibrations of its models' box scores: ``<root>/_calibrations/model=<name>.json``."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration, calibration_of
from pipeline.storage.filesystems import store_errors
from pipeline.storage.lake import write_whole
from schemas.config import FIRST_LOCALIZATION
from schemas.errors import StoreError

FOLDER = "_calibrations"


def calibration_path(root: str, model: str) -> str:
    """Return where the calibration of ``model``, its name and digest, lies."""
    return posixpath.join(root, FOLDER, f"model={model}.json")


def write_calibration(
    fs: AbstractFileSystem, root: str, model: str, calibration: Calibration, settings: Mapping[str, Any]
) -> None:
    """Keep a calibration, in the place of an earlier one; raises StoreError where the store refuses.

    ``settings`` of the run whose boxes it was fitted on.
    """
    document = json.dumps(calibration.document() | {"localization": _localization(settings)}, indent=1)
    write_whole(fs, calibration_path(root, model), document.encode())


def read_calibration(fs: AbstractFileSystem, root: str, model: str, settings: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration of ``model``, None where the output has none.

    Raises StoreError where it can't be read, is of another version of camlake, or was fitted on boxes of maps that were
    made otherwise than ``settings`` say.
    """
    path = calibration_path(root, model)
    with store_errors(f"{path} can't be read"):
        try:
            content = fs.cat_file(path)
        except FileNotFoundError:
            return None
    try:
        document = json.loads(content)
        calibration, fitted = calibration_of(document), _localization(document.get("localization", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: no calibration of this version; make it anew with evaluate --calibrate") from error
    if fitted != _localization(settings):
        raise StoreError(f"{path}: fitted on boxes made with {_shown(fitted)}, not {_shown(settings)}; remove the file")
    return calibration


def _localization(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that say how maps are made."""
    return {name: settings.get(name, first) for name, first in FIRST_LOCALIZATION.items()}


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"--{name} {value}" for name, value in _localization(settings).items())
