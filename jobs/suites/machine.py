"""The facts that a figure depends on, and the form that figures have."""

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.storage.lake import lineage

Figures = dict[str, Any]
"""What a suite measured: each figure's name with its unit, and its value; a repeated figure as ``spread`` gives it."""


def machine_facts() -> Figures:
    """Return what a figure depends on: processor, cores, GPU, versions and commit."""
    import torch

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
    """Return the processor's name; psutil does not know it, and the platform module gives only its family."""
    path = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def spread(values: Sequence[float]) -> Figures:
    """Return the median, the least and the greatest of a figure's repeated values, and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": list(values)}
