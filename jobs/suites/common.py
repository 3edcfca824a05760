"""What the suites share: the machine, pictures to work on, weights, fresh processes, images/s at steady state."""

import multiprocessing
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
import torchvision

from pipeline.annotate.reporter import Advance, Reporter
from pipeline.images.synthetic.scenes import CLASSES, render_scene
from pipeline.models.localize.runtime import resolve_precision
from pipeline.models.registry import DEMO
from pipeline.storage.lake import lineage
from schemas.annotate import AnnotateConfig
from schemas.benchmark import BenchmarkConfig
from schemas.config import Precision
from schemas.errors import UsageError

PHOTO_HW = (375, 500)
"""The usual size of an ImageNet photograph."""

Figures = dict[str, Any]
T = TypeVar("T")


def machine_facts() -> Figures:
    """Return what a figure depends on: processor, cores, GPU, versions and commit."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": lineage.python_version(),
        "packages": lineage.package_versions(),
        "camlake": lineage.camlake_version(),
        "commit": lineage.code_version(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def spread(values: Sequence[float]) -> Figures:
    """Return median, least and greatest of repeated figures."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": list(values)}


def make_photographs(
    config: BenchmarkConfig, folder: Path, count: int, size_hw: tuple[int, int] = PHOTO_HW
) -> list[Path]:
    """Return ``count`` JPEG files in ``folder``: further names of the given photographs in turn, or rendered scenes.

    Where the file system allows it, a further name is a hard link, and a copy elsewhere: never write into these files.
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
    target.unlink(missing_ok=True)  # It may be a name of another photograph, which a copy would overwrite.
    try:
        os.link(source.resolve(), target)  # Of a symbolic link it would make another one.
    except OSError:
        shutil.copyfile(source, target)
    return target


def weights_file(config: BenchmarkConfig, folder: Path) -> str:
    """Return the weights to use: the given ones, or random ones in ``folder``; speed does not depend on them."""
    if config.weights is not None or config.model == DEMO:
        return config.weights or "DEFAULT"
    torch.manual_seed(0)
    path = folder / f"{config.model}-random.safetensors"
    safetensors.torch.save_model(torchvision.models.get_model(config.model, weights=None), str(path))
    return str(path)


def photographs_job(config: BenchmarkConfig, folder: Path, **options: Any) -> AnnotateConfig:
    """Return the job over ``folder``'s photographs, into ``folder``'s out, with the suite's network."""
    return AnnotateConfig(
        input=str(folder / "photographs"),
        out=str(folder / "out"),
        model=config.model,
        weights=weights_file(config, folder),
        **options,
    )


class Watch(Reporter):
    """A reporter that says nothing and remembers when how much was done."""

    def __init__(self) -> None:
        self.points: list[tuple[float, int]] = []

    def say(self, text: str, **facts: Any) -> None:
        """Say nothing."""

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Remember every report."""

        def advance(done: int, rejected: int = 0) -> None:
            self.points.append((time.perf_counter(), done))

        yield advance


def resolved_precision(config: BenchmarkConfig) -> Precision:
    """Return the number type of the networks of all sides: the given one, or what ``annotate`` takes on CPU."""
    return resolve_precision(config.precision, "cpu")


def in_new_process(work: Callable[..., T], *arguments: Any) -> T:
    """Return ``work(*arguments)`` of a fresh process: no side profits from what another has imported or started."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def annotated_s(out: Path) -> list[float]:
    """Return when each image was annotated, in seconds since 1970, sorted: the column of whatever Parquet has it."""
    columns = [
        pq.read_table(path, columns=[name], partitioning=None)[name]
        for path in out.rglob("*.parquet")
        for name in pq.read_schema(path).names
        if name == "annotated_at"
    ]
    return sorted((pa.chunked_array(columns).cast(pa.int64()).to_numpy() / 1e6).tolist()) if columns else []


def steady_per_s(times_s: Sequence[float]) -> float:
    """Return images/s between the first fifth and the last tenth of the sorted times, when all workers are at work.

    Raises UsageError where nothing lies between them.
    """
    start_s, end_s = times_s[len(times_s) // 5], times_s[len(times_s) * 9 // 10]
    if end_s == start_s:
        raise UsageError(f"--count {len(times_s)}: too few images for a steady state")
    return sum(start_s < time_s <= end_s for time_s in times_s) / (end_s - start_s)
