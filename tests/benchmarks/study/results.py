"""The files of a finished training in the study's folder: its weights, and one JSON file that is written last."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from schemas.errors import UsageError
from tests.benchmarks.study.scoring import WayScores
from tests.benchmarks.study.study_config import StudyConfig
from tests.benchmarks.study.study_networks import StudyNetwork, Way

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Result:
    """One finished training with its scores."""

    key: str
    """Key of the training's entry."""
    seed: int
    seconds: float
    """Wall time of training and scoring."""
    parameters: int
    """Number of trained values."""
    side: int
    """Side of the network's input in pixels."""
    map_hw: tuple[int, int]
    losses: tuple[float, ...]
    """Mean loss of each epoch."""
    wrong: NDArray[np.float64]
    """(N,) 1 where the most probable class of a test scene is not the scene's label, else 0."""
    wrong_hinted: NDArray[np.float64]
    """(N,) the same for test scenes whose background hints at the class, as in training."""
    found: dict[Way, WayScores] = field(default_factory=dict)


def weights_path(folder: Path, entry: StudyNetwork, seed: int) -> Path:
    """Return the path of a training's weights."""
    return folder / "trainings" / f"{entry.key}-{seed}.safetensors"


def result_path(folder: Path, entry: StudyNetwork, seed: int) -> Path:
    """Return the path of a training's result; a training is finished once this file exists."""
    return folder / "trainings" / f"{entry.key}-{seed}.json"


def is_finished(folder: Path, entry: StudyNetwork, seed: int) -> bool:
    """Return whether a training has a result."""
    return result_path(folder, entry, seed).exists()


def keep(folder: Path, entry: StudyNetwork, result: Result, module: nn.Module) -> None:
    """Write the weights, then the result; each file appears only once it is complete."""
    weights = weights_path(folder, entry, result.seed)
    weights.parent.mkdir(parents=True, exist_ok=True)
    part = weights.with_suffix(".part")
    save_file({name: value.cpu().contiguous() for name, value in module.state_dict().items()}, part)
    part.rename(weights)
    target = result_path(folder, entry, result.seed)
    part = target.with_suffix(".part")
    part.write_text(json.dumps(asdict(result), default=_listed) + "\n")
    part.rename(target)


def read_all(folder: Path, entries: Iterable[StudyNetwork], n_seeds: int) -> dict[str, list[Result]]:
    """Return the finished trainings of each entry by key, in the order of seeds; entries without any are left out."""
    found = {
        entry.key: [_read(folder, entry, seed) for seed in range(n_seeds) if is_finished(folder, entry, seed)]
        for entry in entries
    }
    return {key: results for key, results in found.items() if results}


def _read(folder: Path, entry: StudyNetwork, seed: int) -> Result:
    values = json.loads(result_path(folder, entry, seed).read_text())
    found = {way: _found(one) for way, one in values.pop("found").items()}
    for name in ("wrong", "wrong_hinted"):
        values[name] = np.array(values[name], dtype=np.float64)
    for name in ("map_hw", "losses"):
        values[name] = tuple(values[name])
    return Result(**values, found=found)


def load_weights(folder: Path, entry: StudyNetwork, seed: int, module: nn.Module) -> None:
    """Load the weights of a finished training into ``module``."""
    module.load_state_dict(load_file(weights_path(folder, entry, seed)))


def claim_folder(config: StudyConfig) -> Path:
    """Return the study's folder and create it if needed; raises UsageError where it belongs to another study."""
    folder = Path(config.folder)
    marker = folder / SETTINGS
    if marker.exists():
        for name, value in json.loads(marker.read_text()).items():
            if config.settings().get(name) != value:
                given = config.settings().get(name)
                option = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{option} {given}: --folder {config.folder!r} holds a study with {option} {value}; name a new one"
                )
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--folder {config.folder!r} is not empty and holds no study; name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    part = marker.with_suffix(".part")
    part.write_text(json.dumps(config.settings(), indent=2) + "\n")
    part.rename(marker)
    return folder


def _found(values: dict[str, Any]) -> WayScores:
    threshold = values.pop("threshold")
    arrays = {name: None if value is None else np.array(value, np.float64) for name, value in values.items()}
    return WayScores(threshold, **arrays)  # type: ignore[arg-type]


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.round(value, 4).tolist()
    raise TypeError(f"no JSON for {type(value)}")
