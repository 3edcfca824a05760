"""The Dockerfile beside kubernetes.yaml: what it says, and its steps run as plain shell, for no Docker is needed here.

Every absolute path of a step gets a folder of the test before it. pip builds and installs the wheel for real, without
the packages that it needs: of those only the versions are compared with what is installed here. apt-get and useradd
note what they were asked for.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from typing import NamedTuple
from zipfile import ZipFile

import pytest

from tests.jobs_on import ROOT
from tests.test_job_files import kubernetes, rayjob

FILE = ROOT / "jobs/schedule/Dockerfile"
PIP = """
import subprocess, sys
from importlib.metadata import version
from packaging.requirements import Requirement

python, verb, *words = sys.argv[1:]
pip = [sys.executable, "-m", "pip", "--quiet"]
if verb == "wheel":
    sys.exit(subprocess.call([*pip, verb, "--no-build-isolation", "--no-index", *words]))
options = [word for word in words if word.startswith("-")]
for word in set(words) - set(options):
    if word.endswith(".whl"):
        subprocess.check_call(
            [*pip, "--python", python, verb, "--no-deps", "--no-index", "--force-reinstall", *options, word]
        )
    else:
        wanted = Requirement(word)
        assert wanted.specifier.contains(version(wanted.name)), word
"""


class Step(NamedTuple):
    """An instruction of the Dockerfile."""

    word: str
    rest: str


def stages() -> list[list[Step]]:
    """The steps of each stage; a stage begins with FROM."""
    lines = "\n".join(line for line in FILE.read_text().splitlines() if not line.startswith("#"))
    steps = [Step(*line.split(None, 1)) for line in re.sub(r"\\\n\s*", "", lines).splitlines() if line]
    starts = [number for number, step in enumerate(steps) if step.word == "FROM"]
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], len(steps)], strict=True)]


def rest_of(stage: list[Step], word: str) -> list[str]:
    return [step.rest for step in stage if step.word == word]


def test_it_makes_the_image_that_kubernetes_names():
    cluster = rayjob()["spec"]["rayClusterSpec"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    (image,) = {one["template"]["spec"]["containers"][0]["image"] for one in groups}
    assert f"--tag {image} ." in FILE.read_text()
    assert f"--file {FILE.relative_to(ROOT)} " in FILE.read_text()
    assert image.endswith(":" + tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    (install,) = [line for line in rest_of(stages()[-1], "RUN") if "pip install" in line]
    assert f"'ray[data,default]=={cluster['rayVersion']}'" in install
    assert "/etc/camlake" in kubernetes()["ConfigMap"]["data"]["annotate.sh"]


def test_the_image_is_slim_and_not_root_s_and_keeps_no_build_tool():
    build, image = stages()
    assert {
        re.match(r"python:3\.\d+-slim", line)[0] for stage in (build, image) for line in rest_of(stage, "FROM")
    } == {"python:3.12-slim"}
    assert not rest_of(image, "COPY"), "the wheels are mounted while they are installed"
    assert int(rest_of(image, "USER")[-1]) > 0, "Kubernetes' runAsNonRoot wants a number"
    words = [step.word for step in image]
    assert "RUN" not in words[words.index("USER") :]


@pytest.mark.slow
def test_its_steps_run(tmp_path, wheel):
    image, asked = tmp_path / "image", tmp_path / "asked.txt"
    python = tmp_path / "python/bin/python"
    venv.create(tmp_path / "python", symlinks=True)
    (site,) = (tmp_path / "python/lib").glob("python*/site-packages")
    (site / "others.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    (tmp_path / "pip.py").write_text(PIP)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("apt-get", "useradd"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {asked}\n')
    (programs / "pip").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {tmp_path}/pip.py {python} "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    for stage in stages():
        here = image
        for word, rest in stage:
            if word == "WORKDIR":
                here = image / rest.lstrip("/")
                here.mkdir(parents=True)
            elif word == "COPY":
                *sources, target = rest.split()
                for source in sources:
                    copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                    copy(ROOT / source, here / target)
            elif word == "RUN":
                line = re.sub(r"^--mount=\S+ ", "", rest)
                line = re.sub(r"(?<![\w.*/])/(?=\w)", f"{image}/", line)
                here.mkdir(parents=True, exist_ok=True)
                done = subprocess.run(
                    ["sh", "-c", line], cwd=here, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{line}: {done.stderr}"
    assert asked.read_text().splitlines() == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends wget",
        "useradd --create-home --uid 1000 camlake",
    ]
    (built,) = (image / "wheels").iterdir()
    assert set(ZipFile(built).namelist()) == set(ZipFile(wheel).namelist()), "the image copies all that a wheel is of"
    code = "import camlake, jobs.annotate; print(camlake.__file__, jobs.annotate.__file__)"
    told = subprocess.run([python, "-c", code], cwd=here, capture_output=True, text=True, check=True).stdout.split()
    assert all(path.startswith(str(site)) for path in told)
    shown = subprocess.run(
        [python, "-m", "jobs.annotate", "--help"], cwd=here, capture_output=True, text=True, check=True
    )
    assert "--config" in shown.stdout
