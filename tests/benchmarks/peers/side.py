"""``python -m tests.benchmarks.peers.side MODULE SETUP``: runs one side; the process imports nothing of the others."""

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from schemas.errors import CamlakeError
from tests.benchmarks.peers.setup import Setup

ROOT = Path(__file__).resolve().parents[3]


def run_side(module: str, setup: Setup) -> None:
    """Run ``run(setup)`` of a module of this package in a new process; raises CamlakeError where it fails."""
    run_python("-m", "tests.benchmarks.peers.side", module, json.dumps(asdict(setup)))


def run_python(*words: str) -> None:
    """Run Python with ``words`` in a new process at the project's root; raises CamlakeError where it fails."""
    words = (sys.executable, *words)
    ended = subprocess.run(words, check=False, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        raise CamlakeError(f"{' '.join(words[1:4])} failed: {' | '.join(ended.stderr.splitlines()[-5:])}")


def main(arguments: Sequence[str]) -> None:
    """Run the side that is named by its module."""
    module, setup = arguments
    importlib.import_module(f"tests.benchmarks.peers.{module}").run(Setup(**json.loads(setup)))


if __name__ == "__main__":
    main(sys.argv[1:])
