"""What is installed: the wheel holds the product and its data, and asks for nothing that only tests use."""

import ast
import re
import sys
from email import message_from_bytes
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

from tests.jobs_on import ROOT

PACKAGES = {"camlake", "pipeline", "jobs", "schemas"}
MODULES = {
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
    "prometheus-client": "prometheus_client",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""Distributions whose module has another name."""
NOT_IMPORTED = {"pytz"}
"""DuckDB imports pytz, and does not ask for it, where a query returns a time with its zone."""
OPTIONAL = {"airflow", "dagster", "mlflow", "pyiceberg", "sqlalchemy", "timm", "transformers", "usearch"}
"""Imported where it is installed."""


@pytest.fixture(scope="module")
def files(wheel) -> set[PurePosixPath]:
    """Return the files of the wheel beside its metadata."""
    paths = map(PurePosixPath, ZipFile(wheel).namelist())
    return {path for path in paths if not path.parts[0].endswith(".dist-info")}


def matching(sources: Path, pattern: str, *places: str) -> set[PurePosixPath]:
    """Return the files of ``places`` whose names match, as a wheel names them."""
    found = [path for place in places for path in (sources / place).rglob(pattern)]
    return {PurePosixPath(path.relative_to(sources).as_posix()) for path in found}


def test_only_the_program_s_packages_are_installed(files):
    assert {path.parts[0] for path in files} == PACKAGES


def test_the_evidence_and_the_tests_stay_in_the_working_copy(files):
    unwanted = re.compile(r"tests?|benchmarks|stud(y|ies)|references|results|test_.*|conftest")
    assert [path for path in files if any(unwanted.fullmatch(PurePosixPath(part).stem) for part in path.parts)] == []


def test_every_module_is_installed_and_camlake_at_the_top_too(files, sources):
    modules = matching(sources, "*.py", "pipeline", "jobs", "schemas")
    at_the_top = {path.relative_to("pipeline") for path in matching(sources, "*.py", "pipeline/camlake")}
    assert {path for path in files if path.suffix == ".py"} == modules | at_the_top


def test_templates_scripts_weights_tables_and_job_files_are_installed(files, sources):
    data = [matching(sources, pattern, "pipeline") for pattern in ("*.j2", "*.css", "*.js", "*.safetensors", "*.csv")]
    data.append(matching(sources, "*.yaml", "jobs"))
    assert all(data)
    assert {path for path in files if path.suffix != ".py"} == set().union(*data)


def imported_by_the_product() -> set[str]:
    """Return the first part of each name that the product imports, inside functions and in try blocks too."""
    found: set[str] = set()
    for file in [path for place in PACKAGES - {"camlake"} for path in (ROOT / place).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.split(".")[0] for name in names}
    return found


def test_the_program_imports_each_of_its_dependencies_and_nothing_else(wheel):
    text = next(name for name in ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    asked = message_from_bytes(ZipFile(wheel).read(text)).get_all("Requires-Dist", [])
    lines = [re.split(r"[^\w.-]", line)[0] for line in asked if "extra ==" not in line]
    modules = {MODULES.get(name, name) for name in lines}
    outside = imported_by_the_product() - PACKAGES - set(sys.stdlib_module_names)
    assert modules - NOT_IMPORTED == outside - OPTIONAL
