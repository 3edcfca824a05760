"""The versions of the code and of the packages that made a run's rows."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "numpy", "opencv-python-headless", "pillow", "fsspec", "s3fs")


NOT_INSTALLED = "not installed"
"""Stands for the version of a package that is not installed under this name."""


def software_versions() -> dict[str, Any]:
    """Return the fields of ``schemas.runs.Lineage`` that name the software."""
    return {
        "camlake_version": camlake_version(),
        "code_version": code_version(),
        "python_version": python_version(),
        "packages": package_versions(),
    }


def camlake_version() -> str:
    """Return the version of the installed camlake, or NOT_INSTALLED."""
    return installed_version("camlake")


def package_versions() -> dict[str, str]:
    """Return the versions of PACKAGES, NOT_INSTALLED for one that is not installed."""
    return {name: installed_version(name) for name in PACKAGES}


def installed_version(name: str) -> str:
    """Return the version of an installed package, or NOT_INSTALLED."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def python_version() -> str:
    """Return this Python's version."""
    return platform.python_version()


def code_version() -> str | None:
    """Return the git commit of the working copy that camlake runs from, with ``+`` where files were changed.

    None where camlake does not run from a working copy.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
