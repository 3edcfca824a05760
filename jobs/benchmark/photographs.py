"""The photographs and the weights for measurements, and the job that annotates the photographs."""

import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
import torchvision

from pipeline.images.synthetic.scenes import CLASSES, render_scene
from pipeline.models.networks.demo_network import DEMO
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import MeasureConfig

PHOTO_HW = (375, 500)
"""The usual (height, width) of an ImageNet photograph in pixels."""


def make_photographs(
    config: MeasureConfig, folder: Path, count: int, size_hw: tuple[int, int] = PHOTO_HW
) -> list[Path]:
    """Return ``count`` JPEG files in ``folder``: the photographs of ``config`` in turn, or rendered scenes.

    Each photograph gets a new name, as a hard link where the file system allows it, else as a copy. Callers must not
    write into these files. Raises UsageError for a folder without JPEG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.images is None:
        return [_rendered(folder, index, size_hw) for index in range(count)]
    sources = sorted(path for path in Path(config.images).iterdir() if path.suffix.lower() in {".jpg", ".jpeg"})
    if not sources:
        raise UsageError(f"--images {config.images!r}: allowed: a folder with JPEG files")
    return [_named(sources[index % len(sources)], folder / f"{index:06d}.jpg") for index in range(count)]


def _rendered(folder: Path, index: int, size_hw: tuple[int, int]) -> Path:
    scene = render_scene(np.random.default_rng(index), index % len(CLASSES), size_hw)
    path = folder / f"{index:06d}.jpg"
    cv2.imwrite(str(path), scene.pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return path


def _named(source: Path, target: Path) -> Path:
    target.unlink(missing_ok=True)  # The target may be a link to another photograph, which a copy would overwrite.
    try:
        os.link(source.resolve(), target)  # Without resolve, a symbolic link would give another symbolic link.
    except OSError:
        shutil.copyfile(source, target)
    return target


def weights_file(config: MeasureConfig, folder: Path) -> str:
    """Return the path of the weights: the configured ones, or random ones in ``folder``, which are as fast."""
    if config.weights is not None or config.model == DEMO:
        return config.weights or "DEFAULT"
    torch.manual_seed(0)
    path = folder / f"{config.model}-random.safetensors"
    safetensors.torch.save_model(torchvision.models.get_model(config.model, weights=None), str(path))
    return str(path)


def photographs_job(config: MeasureConfig, folder: Path, **options: Any) -> AnnotateConfig:
    """Return the job that annotates ``folder``/photographs into ``folder``/out with the network of ``config``."""
    return AnnotateConfig(
        input=str(folder / "photographs"),
        out=str(folder / "out"),
        model=config.model,
        weights=weights_file(config, folder),
        **options,
    )
