"""Where an output keeps the calibrations of its models' box scores: ``<root>/_calibrations/model=<name>.json``."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration, calibration_of
from pipeline.storage.filesystems import connect, safe_url
from pipeline.storage.lake.commit import committed_settings
from pipeline.storage.lake.whole_objects import write_whole
from pipeline.storage.store_failures import store_errors
from schemas.annotate import FIRST_LOCALIZATION
from schemas.config import StorageConfig
from schemas.errors import StoreError, UsageError
from schemas.runs import spelled

FOLDER = "_calibrations"
RULE = ("threshold", "box_rule", "min_area")
"""Settings that say how boxes are cut from maps."""


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
        shown = f"fitted on boxes made with {_shown(fitted)}, not {_shown(settings)}"
        raise StoreError(f"{path}: {shown}; make it anew, or remove it")
    return calibration


def calibration_in(url: str, storage: StorageConfig, model: str, settings: Mapping[str, Any]) -> Calibration:
    """Return the calibration of ``model`` in another output, for boxes made as ``settings`` say (``--calibration``).

    Raises UsageError where there is none, or one for boxes of another rule, and as read_calibration does.
    """
    where = safe_url(url)
    place = connect(url, storage, anonymous=storage.anonymous)
    fitted_on = committed_settings(*place, model)
    found = read_calibration(*place, model, settings) if fitted_on else None
    if fitted_on is None or found is None:
        raise UsageError(f"--calibration {where}: has none of {model}; `camlake evaluate --calibrate` makes one")
    for name in RULE:
        if fitted_on.get(name) != settings.get(name):
            raise UsageError(
                f"--calibration {where}: fitted on boxes of --{name.replace('_', '-')} {spelled(fitted_on.get(name))},"
                f" not {spelled(settings.get(name))}"
            )
    return found


def _localization(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that say how maps are made."""
    return {name: settings.get(name, first) for name, first in FIRST_LOCALIZATION.items()}


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"--{name} {value}" for name, value in _localization(settings).items())
