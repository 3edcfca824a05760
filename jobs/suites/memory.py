"""The driver's peak memory at 1,000 and at 10,000 tiny images."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.console import Screen
from jobs.suites.common import Figures, make_photographs
from schemas.config import BenchmarkConfig
from schemas.errors import CamlakeError

SIZES = (1_000, 10_000)
TINY_HW = (48, 48)


def measure(config: BenchmarkConfig, screen: Screen) -> Figures:
    """Return the peak resident bytes of the driver for each size, and their ratio."""
    peaks = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for count in SIZES:
            tiny = BenchmarkConfig(suite="memory")
            make_photographs(tiny, folder / f"images-{count}", count, TINY_HW)
            peaks[count] = _peak_bytes(folder / f"images-{count}", folder / f"out-{count}")
            screen.say(f"{count} images: {peaks[count] / 2**20:.0f} MiB")
    low, high = (peaks[count] for count in SIZES)
    return {f"peak MiB at {count}": peak / 2**20 for count, peak in peaks.items()} | {"ratio": high / low}


def _peak_bytes(images: Path, out: Path) -> int:
    command = [sys.executable, "-m", "jobs.annotate", str(images), "--out", str(out), "--model", "camlake_demo"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        lines = status.read_text().splitlines() if status.exists() else []
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.2)
    if process.returncode:
        raise CamlakeError(f"annotate failed: {process.stderr.read().strip() if process.stderr else ''}")
    return peak
