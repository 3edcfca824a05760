"""The commands of the benchmarks: their photographs, their arithmetic, their help, and README's table of them."""

import errno
import importlib
import json
import re

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from jobs import benchmark as jobs_benchmark
from jobs.benchmark.photographs import make_photographs
from jobs.benchmark.steady_rate import steady_per_s
from schemas.errors import UsageError
from schemas.options.benchmark import BenchmarkConfig, MeasureConfig
from tests.benchmarks import boxes
from tests.benchmarks.reference import enlarge
from tests.jobs_on import ROOT


@pytest.mark.parametrize("links", [True, False])
def test_photographs_get_further_names_and_stay_as_they_are(tmp_path, monkeypatch, links):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "another file system", str(source), None, str(target))

    if not links:
        monkeypatch.setattr("jobs.benchmark.photographs.os.link", refuse)
    given, folder = tmp_path / "given", tmp_path / "photographs"
    given.mkdir()
    (tmp_path / "c.bin").write_bytes(b"c")
    for name in ("a.jpg", "b.JPEG", "no.txt"):
        (given / name).write_bytes(name[:1].encode())
    (given / "c.jpg").symlink_to("../c.bin")
    for _ in range(2):
        names = make_photographs(MeasureConfig(images=str(given)), folder, 4)
        assert [path.read_bytes() for path in names] == [b"a", b"b", b"c", b"a"]
    make_photographs(MeasureConfig(images=str(folder)), folder / "again", 4)
    assert [path.samefile(given / "a.jpg") for path in names] == [links, False, False, links]
    assert [names[2].is_symlink(), names[2].samefile(tmp_path / "c.bin")] == [False, links]
    assert [(given / name).read_bytes() for name in ("a.jpg", "b.JPEG", "c.jpg")] == [b"a", b"b", b"c"]


class TestSteadyState:
    def test_is_measured_between_the_first_fifth_and_the_last_tenth(self):
        # Two a second from the 20th to the 90th image, whatever came before and after.
        times = [0.0] * 20 + [index / 2 for index in range(71)] + [1e3] * 9
        assert steady_per_s(times) == 2.0

    def test_needs_more_than_a_batch(self):
        with pytest.raises(UsageError, match="too few images"):
            steady_per_s([1.0] * 32)


def run(module, *words):
    """Run a benchmark's command in this process."""
    app = typer.Typer()
    app.command()(module.command)
    return CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb"})


def with_command(module):
    """Return a benchmark's module, or the ``__main__`` of one that is a folder."""
    return module if hasattr(module, "command") else importlib.import_module(f"{module.__name__}.__main__")


def test_boxes_from_start_to_file(tmp_path, monkeypatch):
    for constant in ("MAPS", "SAMPLE"):
        monkeypatch.setattr(f"tests.benchmarks.boxes.{constant}", 8)
    done = run(boxes, "--repeats", "1", "--result", str(tmp_path / "result.json"))
    assert done.exit_code == 0, done.output
    assert "7×7 ratio" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["suite"], result["config"]["repeats"]) == ("boxes", 1)
    assert {"processor", "cores", "packages", "commit"} <= set(result["machine"])
    ratio = result["figures"]["7×7 ratio"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]


NAMES = ("boxes", "encoding", "end_to_end", "host", "kills", "label_free", "peers", "reference", "scale")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_s_help_names_its_command_and_its_options(name):
    shown = run(with_command(importlib.import_module(f"tests.benchmarks.{name}")), "--help")
    assert shown.exit_code == 0
    assert f"python -m tests.benchmarks.{name}" in shown.output
    assert all(f"--{option}" in shown.output for option in MeasureConfig.model_fields)
    assert ("--truth" in shown.output) == (name in {"boxes", "label_free", "reference"})


@pytest.mark.parametrize("name", NAMES)
def test_what_only_the_evidence_measures_is_no_suite_of_the_program(name):
    with pytest.raises(UsageError, match=f"SUITE '{name}': Input should be 'stages', 'memory' or 'gpu'"):
        BenchmarkConfig.resolve({"suite": name})


def test_photographs_are_enlarged_under_their_names(tmp_path):
    (tmp_path / "small" / "in").mkdir(parents=True)
    (tmp_path / "small" / "truth.csv").write_text("no picture")
    cv2.imwrite(str(tmp_path / "small" / "in" / "grey.JPEG"), np.full((6, 8, 3), 90, np.uint8))
    enlarge(tmp_path / "small", tmp_path / "large")
    path_of_large = tmp_path / "large" / "small" / "in" / "grey.JPEG"
    assert [path for path in (tmp_path / "large").rglob("*") if path.is_file()] == [path_of_large]
    large = cv2.imread(str(path_of_large))
    assert large.shape == (24, 32, 3)
    assert np.all(np.abs(large.astype(int) - 90) <= 1)


def commands_of_readme():
    """Return the command lines of README's table of figures, as words behind ``python -m tests.benchmarks.``."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Measured")[2].partition("\n## ")[0]
    last_cells = [line.rstrip(" |").rpartition(" | ")[2] for line in table.splitlines() if line.startswith("| ")]
    lines = [re.findall(r"`([^`]+)`", cell)[0] for cell in last_cells[1:]]
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("line", commands_of_readme())
def test_readme_s_commands_are_understood(line):
    rest = line.removeprefix("camlake benchmark ")
    words = rest.replace("SQ", "--images P --weights F").replace("MN", "--images P --weights F --model m").split()
    module = jobs_benchmark if line != rest else importlib.import_module(f"tests.benchmarks.{words.pop(0)}")
    app = typer.Typer()
    app.command()(with_command(module).command)
    assert typer.main.get_command(app).make_context(line, words).params
