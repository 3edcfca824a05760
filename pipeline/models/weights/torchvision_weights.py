"""Weights by name: those of torchvision, downloaded where need be, and the ones of the demo network that ship here."""

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torchvision
from torchvision.models import WeightsEnum

from pipeline.models.registry import DEMO, official_weights
from pipeline.models.weights.checkpoint import WeightsFile, read_checkpoint
from schemas.errors import ModelError

DEMO_WEIGHTS = Path(__file__).with_name(f"{DEMO}.safetensors")


def is_name(weights: str) -> bool:
    """Return whether ``weights`` can only be a name, not a file."""
    return not ("." in weights or "/" in weights)


def weights_by_name(model: str, weights: str, whole: bool = True) -> tuple[WeightsFile, str, WeightsEnum | None]:
    """Return torchvision's weights of that name, downloaded where need be, or the demo's; where ``whole``, complete."""
    if model == DEMO:
        if weights != "DEFAULT":
            raise ModelError(f"--weights {weights!r} of {DEMO}: allowed: DEFAULT, or a .safetensors, .pt or .pth file")
        return _read_demo(), DEMO_WEIGHTS.name, None
    entries = official_weights(model) if whole else list(torchvision.models.get_model_weights(model))
    if not entries:
        raise ModelError(
            f"--weights {weights}: there are no trained ones of {model}; `camlake train` makes a file for --weights"
        )
    names = ["DEFAULT", *(entry.name for entry in entries)]
    if weights not in names:
        raise ModelError(
            f"--weights {weights!r} of {model}: allowed: {', '.join(names)}, or a .safetensors, .pt or .pth file"
        )
    entry = type(entries[0]).DEFAULT if weights == "DEFAULT" else entries[names.index(weights) - 1]
    return read_checkpoint(str(_downloaded(model, entry))), str(entry), entry


def _downloaded(model: str, entry: WeightsEnum) -> Path:
    """Return the file of torchvision's weights in torch's cache, fetched if it is not there and checked by its hash."""
    name = Path(urlsplit(entry.url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    stated = re.search(r"-([0-9a-f]{8,})\.", name)
    prefix = stated[1] if stated else None
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(path), prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights {entry.name} of {model} can't be downloaded from {entry.url} ({error}); "
                f"fetch them elsewhere and give the file with --weights"
            ) from error
    return path


def _read_demo() -> WeightsFile:
    if not DEMO_WEIGHTS.exists():
        raise ModelError(
            f"{DEMO_WEIGHTS} is missing: install camlake anew, or make it with `python -m tests.benchmarks.train_demo`"
        )
    return read_checkpoint(str(DEMO_WEIGHTS))
