"""What a reader takes in at once, and what a name stands for: the bars of the house on folders, files and names."""

import ast
from collections import Counter
from pathlib import Path, PurePosixPath

from tests.jobs_on import ROOT

PACKAGES = ("schemas", "pipeline", "jobs")
MODULES, LINES, FUNCTION_LINES = 16, 300, 60
"""The most modules of a folder and lines of a function of the packages, and the most lines of a file, tests too."""
SAME_NAME = ("jobs", "schemas/options", "pipeline/outputs/export/formats")
"""A verb's file and its options have the name of what the verb does, and a format that is read that of its export."""


def texts_of(root: Path, *places: str) -> dict[PurePosixPath, str]:
    """Return the text of every Python file below ``places``."""
    files = sorted(file for place in places for file in (root / place).rglob("*.py"))
    return {PurePosixPath(file.relative_to(root).as_posix()): file.read_text(encoding="utf-8") for file in files}


def crowded(root: Path) -> list[str]:
    """Return the folders with too many modules, the files with too many lines and the functions with too many."""
    texts = texts_of(root, *PACKAGES)
    folders = Counter(str(path.parent) for path in texts)
    found = [folder for folder, modules in folders.items() if modules > MODULES]
    every = texts | texts_of(root, "tests")
    found += [str(path) for path, text in every.items() if len(text.splitlines()) > LINES]
    for path, text in texts.items():
        nodes = ast.walk(ast.parse(text))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        long = [one for one in functions if (one.end_lineno or 0) - one.lineno >= FUNCTION_LINES]
        found += [f"{path}: {one.name}" for one in long]
    return found


def names_of_two_things(root: Path) -> list[str]:
    """Return the names of modules and of classes that stand for two things."""
    texts = {path: text for path, text in texts_of(root, *PACKAGES).items() if not path.name.startswith("__")}
    modules = [path.stem for path in texts if not str(path).startswith(SAME_NAME)]
    nodes = [node for text in texts.values() for node in ast.walk(ast.parse(text))]
    classes = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    return [name for names in (modules, classes) for name, count in Counter(names).items() if count > 1]


def test_no_folder_no_file_and_no_function_is_crowded() -> None:
    assert crowded(ROOT) == []


def test_no_name_stands_for_two_things() -> None:
    assert names_of_two_things(ROOT) == []


def write(root: Path, path: str, text: str = "") -> None:
    """Write a file of a small project."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_what_is_crowded_is_found(tmp_path: Path) -> None:
    for number in range(MODULES):
        write(tmp_path, f"schemas/of{number}.py")
    write(tmp_path, "jobs/one.py", "\n" * LINES)
    write(tmp_path, "pipeline/one.py", "def short():\n" + "    pass\n" * (FUNCTION_LINES - 1))
    assert crowded(tmp_path) == []
    write(tmp_path, "schemas/last.py")
    write(tmp_path, "jobs/one.py", "\n" * (LINES + 1))
    write(tmp_path, "tests/test_one.py", "\n" * (LINES + 1))
    write(tmp_path, "pipeline/one.py", "async def long():\n" + "    pass\n" * FUNCTION_LINES)
    assert crowded(tmp_path) == ["schemas", "jobs/one.py", "tests/test_one.py", "pipeline/one.py: long"]


def test_a_name_of_two_things_is_found(tmp_path: Path) -> None:
    write(tmp_path, "jobs/thing.py")
    write(tmp_path, "pipeline/images/thing.py", "class Thing: pass\n")
    assert names_of_two_things(tmp_path) == []
    write(tmp_path, "pipeline/models/thing.py")
    write(tmp_path, "schemas/other.py", "class Thing: pass\n")
    assert names_of_two_things(tmp_path) == ["thing", "Thing"]
