"""The installed program in a folder of somebody else's, who has a ``jobs.py``, a ``pipeline`` and a ``schemas`` too."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from pipeline.graph.cluster import ray_cluster
from schemas.errors import UsageError

N_IMAGES, N_BROKEN = 10, 2
ANOTHER_PACKAGE = "raise RuntimeError('the package of another project was imported')\n"


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """Install the wheel into an environment of its own; return the folder of its programs.

    The other packages are those of this environment: its folder stands behind, but the import hooks in it, like that of
    an editable camlake, have no effect there.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    programs = folder / "bin"
    paths = {name: sysconfig.get_path(name) for name in ("purelib", "platlib")}
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (site / "others.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(paths.values())))
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    return programs


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """Return a folder that has packages of camlake's names, each of which fails when it is imported."""
    for name in ("pipeline", "schemas"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(ANOTHER_PACKAGE)
    (tmp_path / "jobs.py").write_text("mine = 1\n")
    return tmp_path


@pytest.fixture
def call(programs, elsewhere):
    """Return a function that runs a program of the environment in that folder."""

    def run(program, *words):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [programs / program, *map(str, words)]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False, timeout=400
        )

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)  # one run on each engine
def test_both_forms_of_the_program_run_and_python_reads_the_tables(call):
    done = call("camlake", "demo", "--images", N_IMAGES, "--folder", "demo")
    assert done.returncode == 0, done.stderr
    assert f"{N_IMAGES} images" in done.stdout
    options = ("--out", "labels", "--model", "camlake_demo", "--max-rejected", 1, "--engine", "ray")
    done = call("python", "-m", "camlake", "annotate", "demo/pictures/images", *options)
    assert done.returncode == 0, done.stderr
    code = """
import camlake
import jobs

with camlake.annotate(input="demo/pictures/images", out="labels", model="camlake_demo", max_rejected=1.0) as lake:
    counts = lake.runs[-1].counts
    print(jobs.mine, counts.planned, counts.already_done, len(lake.arrow("images")))
"""
    done = call("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "0", str(N_IMAGES + N_BROKEN), str(N_IMAGES)]


def test_a_verb_as_a_module_works_beside_other_packages_of_two_of_the_names(call, elsewhere):
    (elsewhere / "jobs.py").unlink()
    done = call("python", "-m", "jobs.verify", "nothing-there")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("camlake: nothing-there: no camlake output here")
    assert len(done.stderr.splitlines()) == 1


def test_a_verb_as_a_module_beside_another_jobs_ends_in_one_line_that_names_it(call):
    done = call("python", "-m", "jobs.verify", "nothing-there")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'jobs.verify'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_package_of_the_name_that_was_imported_before_is_named(call, elsewhere):
    (elsewhere / "pipeline/__init__.py").write_text("")
    done = call("python", "-c", "import pipeline\nimport camlake")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: camlake has a package 'pipeline' of its own, and {elsewhere}/pipeline/__init__.py was imported"
        " in its place"
    )


def test_a_ray_that_runs_already_is_refused_where_its_workers_would_import_others(ray_session, elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    expected = pytest.raises(UsageError, match=f"^{elsewhere}/pipeline has the name of a package of camlake's")
    with expected, ray_cluster(None):
        pass
