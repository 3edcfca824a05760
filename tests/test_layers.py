"""The direction of imports and the top of the repository: DESIGN's section on layout, held by a test."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEVELS = {
    "schemas": 0.0,
    "schemas/options": 0.1,
    "pipeline/arrays": 1,
    "pipeline/images": 2.0,
    "pipeline/images/synthetic": 2.1,
    "pipeline/models/networks": 2.2,
    "pipeline/models/networks/found": 2.25,
    "pipeline/models": 2.3,
    "pipeline/models/weights": 2.4,
    "pipeline/models/learn": 2.5,
    "pipeline/models/localize": 2.5,
    "pipeline/storage": 3.0,
    "pipeline/storage/inputs": 3.1,
    "pipeline/storage/truth": 3.2,
    "pipeline/storage/lake": 3.3,
    "pipeline/storage/lake/integrity": 3.4,
    "pipeline/storage/lake/plan": 3.4,
    "pipeline/storage/lake/compaction": 3.4,
    "pipeline/annotate": 3.5,
    "pipeline/annotate/foreground": 3.6,
    "pipeline/annotate/local": 3.6,
    "pipeline/outputs": 3.5,
    "pipeline/outputs/heads": 3.6,
    "pipeline/outputs/sql": 3.6,
    "pipeline/outputs/runs": 3.6,
    "pipeline/outputs/export": 3.6,
    "pipeline/outputs/export/formats": 3.7,
    "pipeline/outputs/page": 3.7,
    "pipeline/outputs/publish": 3.7,
    "pipeline/graph": 4.0,
    "pipeline/graph/tuning": 4.1,
    "pipeline/graph/annotate": 4.2,
    "pipeline/graph/train": 4.2,
    "pipeline/camlake": 4.9,
    "jobs/terminal": 4.9,
    "jobs/schedule": 5.0,
    "jobs/benchmark": 5.0,
    "jobs/demo": 5.0,
    "jobs/head": 5.0,
    "jobs/runs": 5.0,
    "jobs": 5.1,
    "jobs/recipes": 5.2,
    "jobs/terminal/program.py": 5.9,
    "pipeline/camlake/__main__.py": 6.0,
}
"""Each folder's level; a file imports from its own folder and from lower levels. A new file needs no entry here.

The two files with a level of their own are the doors of the program, above all verbs.
"""

PACKAGES = {"schemas", "pipeline", "jobs"}
PLACES = {"camlake": "pipeline.camlake"}
"""The package whose folder lies elsewhere than its name says."""

NETWORK = {"torch", "torchvision", "safetensors"}
RAY = {"ray"}
S3_CLIENTS = {"s3fs", "boto3", "botocore", "aiobotocore"}
STORAGE = S3_CLIENTS | {"fsspec", "duckdb", "pyarrow.fs", "pyarrow.parquet", "pyarrow.dataset"}
OPERATING_SYSTEM = {
    "os",
    "io",
    "pathlib",
    "shutil",
    "tempfile",
    "subprocess",
    "socket",
    "urllib.request",
    "http",
    "requests",
}
PICTURES = {"cv2", "PIL", "pillow_heif"}

NEVER = {
    "schemas": NETWORK | RAY | STORAGE | OPERATING_SYSTEM | PICTURES,
    "pipeline/arrays": RAY | STORAGE | OPERATING_SYSTEM,
    "pipeline/images": RAY,
    "pipeline/models": RAY,
    "pipeline/storage": RAY | NETWORK,
    "pipeline/annotate": RAY,
    "pipeline/outputs": RAY,
    "jobs": RAY,
}
"""What no file of a folder, or of the folders in it, imports, with everything below these names."""

TOP = {"pipeline", "jobs", "schemas", "tests", "cluster.yaml", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}


def folder_of(path: PurePosixPath) -> str:
    """Return the folder of a file, or a folder itself."""
    return str(path.parent if path.suffix == ".py" else path)


def never_in(path: PurePosixPath) -> set[str]:
    """Return what a file must not import."""
    return set().union(*(NEVER.get(str(place), set()) for place in path.parents))


def imported(source: str, path: PurePosixPath) -> Iterator[tuple[str, ...]]:
    """Yield each import, inside functions too, as the dotted names it may mean, the most exact first."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((PLACES.get(alias.name, alias.name),) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
            module = ".".join([*package, *([PLACES.get(node.module, node.module)] if node.module else [])])
            yield from ((f"{module}.{alias.name}", module) for alias in node.names)


def module_of(names: tuple[str, ...], root: Path) -> PurePosixPath | None:
    """Return the file or the folder of one of the project's own modules; None for one that is not there."""
    paths = [PurePosixPath(*name.split(".")) for name in names]
    places = [place for path in paths for place in (path.with_suffix(".py"), path) if (root / place).exists()]
    return places[0] if places else None


def lies_under(name: str, forbidden: set[str]) -> bool:
    """Return whether a dotted name is one of ``forbidden`` or below one."""
    return any(name == other or name.startswith(f"{other}.") for other in forbidden)


def files_of(root: Path) -> dict[PurePosixPath, list[tuple[str, ...]]]:
    """Return every file of the packages with its imports."""
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    paths = [PurePosixPath(file.relative_to(root).as_posix()) for file in files]
    return {path: list(imported((root / path).read_text(encoding="utf-8"), path)) for path in paths}


def violations(root: Path) -> list[str]:
    """Return a line for each import under ``root`` that points up or reaches what its folder must not."""
    found = []
    for path, imports in files_of(root).items():
        if path == PurePosixPath("pipeline/__init__.py"):
            found += [f"{path} imports {names[0]}: it runs before every level and imports nothing" for names in imports]
            continue
        folder = folder_of(path)
        level = LEVELS.get(str(path), LEVELS.get(folder))
        if level is None:
            found.append(f"{path} has no level")
            continue
        for names in imports:
            if names[0].split(".")[0] in PACKAGES:
                target = module_of(names, root)
                other = folder_of(target) if target else ""
                if other != folder and LEVELS.get(other, level) >= level:
                    found.append(f"{path} (level {level}) imports {names[0]} (level {LEVELS.get(other)})")
            elif lies_under(names[0], never_in(path)):
                found.append(f"{path} (level {level}) imports {names[0]}")
    return found


def import_graph(root: Path) -> dict[PurePosixPath, set[PurePosixPath]]:
    """Return each file of the packages with the others that it imports, inside functions too."""
    graph = {}
    for path, imports in files_of(root).items():
        own = [module_of(names, root) for names in imports if names[0].split(".")[0] in PACKAGES]
        graph[path] = {one if one.suffix == ".py" else one / "__init__.py" for one in own if one} - {path}
    return graph


def circles(root: Path) -> list[list[str]]:
    """Return the groups of files that import each other in a circle."""
    graph = import_graph(root)
    while True:  # What imports nothing of the rest, or is imported by nothing of it, stands in no circle.
        imported_by_rest = {path for others in graph.values() for path in others}
        kept = {path: others & graph.keys() for path, others in graph.items() if path in imported_by_rest and others}
        if kept == graph:
            break
        graph = kept
    return [sorted(map(str, graph))] if graph else []


def calls_of_open(root: Path) -> list[str]:
    """Return the files of ``schemas/`` and ``pipeline/arrays/`` that call the built-in ``open``."""
    files = [file for place in ("schemas", "pipeline/arrays") for file in sorted((root / place).rglob("*.py"))]
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    return [
        str(file.relative_to(root))
        for file, tree in trees.items()
        if any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
            for node in ast.walk(tree)
        )
    ]


def unexpected_at_top(names: set[str]) -> set[str]:
    """Return the names that have no place at the top of the repository; dot-files have."""
    return {name for name in names if name not in TOP and not name.startswith(".")}


def test_every_file_imports_from_its_own_level_or_lower() -> None:
    assert violations(ROOT) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(ROOT) == []


def test_schemas_and_arrays_open_no_files() -> None:
    assert calls_of_open(ROOT) == []


def test_only_the_agreed_names_stand_at_the_top() -> None:
    listing = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip(f"what belongs to the repository is git's to say, and it does not: {listing.stderr.strip()}")
    assert unexpected_at_top({line.split("/")[0] for line in listing.stdout.splitlines()}) == set()


PROJECT_FOLDERS = [
    "schemas",
    *(f"pipeline/{name}" for name in ("arrays", "models", "storage", "graph", "camlake")),
    "jobs",
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a small project with one clean module a level."""
    for place in PROJECT_FOLDERS:
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "thing.py").write_text("import json\n")
    (tmp_path / "pipeline/__init__.py").touch()
    (tmp_path / "pipeline/graph/thing.py").write_text("import ray\nfrom pipeline.models import thing\n")
    (tmp_path / "jobs/thing.py").write_text("import camlake\nfrom pipeline.graph.thing import run\n")
    (tmp_path / "pipeline/camlake/__main__.py").write_text("from jobs.thing import main\n")
    return tmp_path


def test_a_clean_project_has_no_violation(project: Path) -> None:
    assert violations(project) == []


@pytest.mark.parametrize(
    ("file", "line", "violation"),
    [
        ("schemas/thing.py", "from pipeline.arrays import thing", "imports pipeline.arrays.thing (level 1)"),
        ("schemas/thing.py", "import pipeline", "imports pipeline (level None)"),
        ("schemas/thing.py", "import torch.nn as nn", "imports torch.nn"),
        ("schemas/thing.py", "from pyarrow import parquet", "imports pyarrow.parquet"),
        ("schemas/thing.py", "from pathlib import Path", "imports pathlib.Path"),
        ("pipeline/arrays/thing.py", "import fsspec", "imports fsspec"),
        ("pipeline/arrays/thing.py", "from ..models import thing", "imports pipeline.models.thing (level 2.3)"),
        ("pipeline/models/thing.py", "from pipeline import storage", "imports pipeline.storage (level 3.0)"),
        ("pipeline/models/thing.py", "def late():\n    import ray", "imports ray"),
        ("pipeline/storage/thing.py", "import torch", "imports torch"),
        ("pipeline/storage/thing.py", "from ray.data import Dataset", "imports ray.data.Dataset"),
        (
            "pipeline/storage/thing.py",
            "from pipeline.graph.thing import run",
            "imports pipeline.graph.thing.run (level 4.0)",
        ),
        ("pipeline/graph/thing.py", "from jobs.thing import main", "imports jobs.thing.main (level 5.1)"),
        ("pipeline/graph/thing.py", "import camlake", "imports pipeline.camlake (level 4.9)"),
        ("pipeline/graph/thing.py", "from camlake import thing", "imports pipeline.camlake.thing (level 4.9)"),
        ("pipeline/camlake/thing.py", "from jobs.thing import main", "imports jobs.thing.main (level 5.1)"),
        ("pipeline/__init__.py", "import json", "imports json"),
        ("pipeline/loose.py", "", "has no level"),
    ],
)
def test_a_planted_violation_is_found(project: Path, file: str, line: str, violation: str) -> None:
    (project / file).write_text(line)
    found = violations(project)
    assert len(found) == 1
    assert found[0].startswith(file)
    assert violation in found[0]


def test_a_planted_circle_is_found(project: Path) -> None:
    (project / "pipeline/models/thing.py").write_text("from pipeline.models import other\n")
    (project / "pipeline/models/other.py").write_text("def late():\n    from pipeline.models.thing import late\n")
    assert circles(project) == [["pipeline/models/other.py", "pipeline/models/thing.py"]]


def test_a_planted_open_is_found(project: Path) -> None:
    (project / "schemas/thing.py").write_text("def load(path):\n    return open(path).read()\n")
    assert calls_of_open(project) == ["schemas/thing.py"]


def test_a_stray_name_at_the_top_is_found() -> None:
    assert unexpected_at_top({"pipeline", ".ci", "LICENSE", "notes.txt", "docs"}) == {"notes.txt", "docs"}
