"""Where an output keeps the calibrations of its models' box scores: ``<root>/_calibrations/model=<name>.json``."""

import json
import posixpath

from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration, calibration_of
from pipeline.storage.filesystems import store_errors
from pipeline.storage.lake import write_whole
from schemas.errors import StoreError

FOLDER = "_calibrations"


def calibration_path(root: str, model: str) -> str:
    """Return where the calibration of ``model``, its name and digest, lies."""
    return posixpath.join(root, FOLDER, f"model={model}.json")


def write_calibration(fs: AbstractFileSystem, root: str, model: str, calibration: Calibration) -> None:
    """Keep a calibration, in the place of an earlier one; raises StoreError where the store refuses."""
    document = json.dumps(calibration.document(), indent=1)
    write_whole(fs, calibration_path(root, model), document.encode())


def read_calibration(fs: AbstractFileSystem, root: str, model: str) -> Calibration | None:
    """Return the calibration of ``model``, None where the output has none.

    Raises StoreError where it can't be read, or is of another version of camlake.
    """
    path = calibration_path(root, model)
    with store_errors(f"{path} can't be read"):
        try:
            content = fs.cat_file(path)
        except FileNotFoundError:
            return None
    try:
        return calibration_of(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: no calibration of this version; make it anew with evaluate --calibrate") from error
