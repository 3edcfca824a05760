"""Makes this process take camlake's own ``pipeline``, ``schemas`` and ``jobs``, whatever the working folder holds.

Other projects use these names too. Python takes the package that comes first on its path, and the working folder comes
first after ``python -m`` and in Ray's workers. So camlake imports its own packages from the place where it lies, before
anything else asks for them.
"""

import importlib
import sys
from pathlib import Path

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pipeline" / "camlake").is_dir())
"""The folder of ``pipeline``, ``schemas`` and ``jobs``: site-packages, or the working copy of an editable install."""


def use_own(*names: str) -> None:
    """Import the packages ``names`` from ROOT, so that every later import takes them.

    Raises ImportError where another package of such a name is imported already: one process can hold only one of them.
    """
    for name in names:
        sys.path.insert(0, str(ROOT))
        try:
            module = importlib.import_module(name)
        finally:
            sys.path.remove(str(ROOT))
        if Path(module.__file__ or "").resolve().parent != ROOT / name:
            where = module.__file__ or ", ".join(module.__path__)
            raise ImportError(f"camlake has a package {name!r} of its own, and {where} was imported in its place")
