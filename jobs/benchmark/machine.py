"""Facts about the machine, on which figures depend, and the form of figures."""

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.storage.lake import lineage

Figures = dict[str, Any]
"""The figures of a suite: the name, with the unit, and the value; a repeated figure has the value of ``spread``."""


def machine_facts() -> Figures:
    """Return the facts on which figures depend: processor, cores, GPU, versions and commit."""
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
    """Return the processor's name; psutil does not have it, and the platform module has only the processor's family."""
    path = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def spread(values: Sequence[float]) -> Figures:
    """Return the median, the least and the greatest of a figure's repeated values, and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": list(values)}
