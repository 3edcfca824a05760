"""What a user meets: help with an example, one line for each mistake, exit statuses, messages for machines."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import jobs
from jobs.terminal.console import Screen
from jobs.terminal.program import main
from pipeline.models.networks.architecture import GREATEST_WIDTH, WIDTH_STEPS
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from tests.jobs_on import ROOT, run_command

PICTURES = str(ROOT / "tests/fixtures/output_0_1/pictures")
VERBS = (
    "demo",
    "annotate",
    "train",
    "evaluate",
    "export",
    "foreground",
    "head",
    "localize",
    "rebox",
    "report",
    "runs",
    "verify",
    "view",
    "sql",
    "compact",
    "publish",
    "models",
    "neighbours",
    "benchmark",
)


@pytest.fixture
def camlake(capsys, monkeypatch):
    """Run the program in this process; returns status, standard output and standard error."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["camlake", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def program(*words, **environment):
    """Run the installed program in a process of its own, with these variables beside the others."""
    file = Path(sys.executable).with_name("camlake")
    return subprocess.run([file, *words], env=os.environ | environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(camlake, verb):
    status, out, _ = camlake(verb, "--help")
    assert status == 0
    assert f"camlake {verb}" in " ".join(out.split())
    assert "Example" in out


def test_help_shows_brackets(camlake):
    said = re.sub(r"[\s│]", "", camlake("neighbours", "--help")[1])
    assert "camlake[index]" in said, "rich takes them for a style"


def test_bare_call_lists_the_verbs(camlake):
    _, out, err = camlake()
    assert all(verb in out for verb in VERBS)
    assert err == ""


NEW_VERB = '''
from jobs.terminal.console import Screen, verb
from schemas.options.config import StorageConfig, required

class XyzConfig(StorageConfig):
    """What xyz does."""

    thing: str = required("a thing")

def run(config: XyzConfig, screen: Screen) -> None:
    """Say the thing."""
    screen.result(f"xyz of {config.thing}")

ABOUT = "Do a new thing."

command = verb(ABOUT, XyzConfig, run, "camlake xyz THING")
'''


@pytest.mark.parametrize("file", ["xyz.py", "xyz/__init__.py"])
def test_a_new_file_or_folder_is_a_new_verb(camlake, tmp_path, monkeypatch, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(NEW_VERB)
    monkeypatch.delitem(sys.modules, "jobs.xyz", raising=False)
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(tmp_path)])
    status, out, _ = camlake("--help")
    assert (status, "xyz         Do a new thing." in out) == (0, True)
    status, out, _ = camlake("xyz", "that")
    assert (status, out) == (0, "xyz of that\n")


@pytest.mark.parametrize("verb", sorted(file.parent.name for file in ROOT.glob("jobs/*/__main__.py")))
def test_a_folder_runs_as_a_module(verb):
    words = [sys.executable, "-m", f"jobs.{verb}", "-h"]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"camlake {verb}" in shown


def test_help_lists_the_verbs_of_jobs_and_imports_none():
    code = (
        "import sys; from jobs.terminal.program import verbs;"
        " print(*verbs()); print(*(name for name in sys.modules if 'jobs' in name))"
    )
    listed, imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert sorted(listed.split()) == sorted(VERBS)
    assert sorted(imported.split()) == ["jobs", "jobs.terminal", "jobs.terminal.program"]


HEAVY = {"torch", "torchvision", "ray", "duckdb", "pandas", "sklearn", "matplotlib"}


def test_no_verb_imports_its_work_before_it_runs():
    names = " ".join(f"jobs.{verb}" for verb in VERBS)
    code = f"import importlib, sys; [importlib.import_module(name) for name in '{names}'.split()]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(names.split()) <= set(loaded)
    assert HEAVY & set(loaded) == set()


def test_a_process_that_only_commits_imports_no_network():
    """Ray starts some for each run; torch would cost each of them seconds."""
    code = "import sys, pipeline.graph.annotate.datasink; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ray.data" in loaded
    assert {"torch", "torchvision", "cv2"} & set(loaded) == set()


def test_help_has_a_short_form(camlake):
    assert camlake("annotate", "-h") == camlake("annotate", "--help")


@pytest.mark.parametrize(("switch", "colours"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["wanted", "unwanted"])
def test_help_has_colours_unless_the_user_wants_none(switch, colours):
    terminal = {"TERM": "xterm-256color", "FORCE_COLOR": "1"}
    assert bool(re.search(r"\x1b\[[\d;]*3\dm", program("--help", **terminal, **switch).stdout)) is colours


@pytest.mark.parametrize(("line", "completed"), [("camlake ann", ["annotate"]), ("camlake train --epo", ["--epochs"])])
def test_a_shell_completes_verbs_and_their_options(line, completed):
    cursor = str(len(line.split()) - 1)
    assert program(COMP_WORDS=line, COMP_CWORD=cursor, _CAMLAKE_COMPLETE="complete_bash").stdout.split() == completed


def test_version(camlake):
    status, out, _ = camlake("--version")
    assert status == 0
    assert out.startswith("camlake 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["annotate", "in", "--out", "o", "--treshold", "1"], "--treshold"),
        (["annotate", "in", "--out", "o", "--threshold", "1.5"], "--threshold '1.5': Input should be less than 1"),
        (["annotate", "in", "--out", "o", "--resize", "crop"], "--resize 'crop': Input should be 'squash' or 'fit'"),
        (["annotate", "in", "--out", "o", "--actors", "4:2"], "--actors 4:2: allowed: 1 <= MIN <= MAX"),
        (["annotate", "in", "--out", "o", "--outputs", "boxs"], "--outputs 'boxs': allowed: boxes, heatmaps, features"),
        (["annotate", "in", "--out", "o", "--log-format", "xml"], "--log-format 'xml': allowed: text, json"),
        (
            ["annotate", PICTURES, "--out", "o", "--model", "resnet5"],
            "unknown network 'resnet5'; did you mean 'resnet50'?",
        ),
        (["annotate", PICTURES, "--out", "o", "--model", "vgg16"], "vgg16 has no exact class activation map"),
        (
            ["annotate", PICTURES, "--out", "o", "--model", "vit_b_16", "--method", "backprop"],
            "vit_b_16 is not cut into feature maps and a head, as training and every --method need: it classifies by",
        ),
        (["annotate", "in"], "--out is missing"),
        (["annotate", "--out", "o"], "INPUT is missing"),
        (["annotate"], "INPUT and --out are missing"),
        (["annotate", "in", "--out", "o", "--treshold", "1"], "(Possible options: --method, --threshold); see --help"),
        (["annotate", "in", "--out", "o", "--config", "no.yaml"], "--config 'no.yaml': can't be read"),
        (["verify"], "OUT is missing"),
        (["nonsense"], "No such command 'nonsense'; see --help"),
        (["anotate"], "No such command 'anotate'; did you mean 'annotate'?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(camlake, words, said):
    status, _, err = camlake(*words)
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_training_refuses_a_small_input_before_ray_starts(camlake, tmp_path):
    for name in ("bird", "fish"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").write_bytes(b"not read yet")
    network = ("--model", "nin", "--width", "0.125", "--weights", "none", "--val-share", "0")
    status, _, err = camlake("train", tmp_path / "in", "--out", tmp_path / "out", *network, "--image-size", "32")
    assert status == 2
    assert err.splitlines()[-1].endswith("--image-size 32 is too small for nin, whose own is 224; allowed: 39 or more")
    assert "starting Ray" not in err


def test_help_says_which_widths_there_are_and_what_models_lists(camlake):
    _, out, _ = camlake("train", "--help")
    assert f"multiples of 1/{WIDTH_STEPS} up to {GREATEST_WIDTH:g}" in " ".join(out.replace("│", " ").split())
    _, out, _ = camlake("--help")
    assert "whether they have exact" in " ".join(out.replace("│", " ").split())


def test_failures_are_one_line_and_status_1(camlake, tmp_path):
    status, _, err = camlake("annotate", tmp_path / "none", "--out", tmp_path / "out", "--model", "camlake_demo")
    assert status == 1
    assert str(tmp_path / "none") in err.splitlines()[-1]
    status, _, err = camlake("verify", tmp_path / "none")
    assert status == 1
    assert len(err.strip().splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path):
    done = run_command("verify", tmp_path / "none", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_flags_win_over_the_file(camlake, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({"input": "from-file", "out": str(tmp_path / "out"), "top-k": 1}))
    status, _, err = camlake("annotate", "--config", file)
    assert (status, "did you mean 'topk'" in err) == (2, True)
    file.write_text(yaml.safe_dump({"input": PICTURES, "out": str(tmp_path / "out"), "model": "resnet5"}))
    _, _, err = camlake("annotate", "--config", file)
    assert "unknown network 'resnet5'" in err
    _, _, err = camlake("annotate", tmp_path / "from-flag", "--config", file, "--model", "camlake_demo")
    assert "from-flag" in err


def test_config_that_is_no_mapping(camlake, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("- a\n- b\n")
    assert "allowed: a mapping of option names to values" in camlake("annotate", "--config", file)[2]
    file.write_text("a: [")
    assert "not YAML" in camlake("annotate", "--config", file)[2]


def test_models_lists_networks_for_people_and_for_machines(camlake):
    status, out, _ = camlake("models", "--name", "squeezenet")
    assert status == 0
    assert "squeezenet1_1" in out
    assert "13×13" in out
    _, out, _ = camlake("models", "--name", "squeezenet", "--log-format", "json")
    rows = json.loads(out)["rows"]
    assert {row["network"] for row in rows} == {"squeezenet1_0", "squeezenet1_1"}


def test_actor_ranges():
    def actors(value):
        return AnnotateConfig.resolve({"input": "i", "out": "o", "actors": value}).actors

    assert (actors("2:8"), actors("3"), actors(4)) == ((2, 8), (3, 3), (4, 4))
    with pytest.raises(UsageError, match="MIN or MIN:MAX"):
        actors("many")


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 9.0, 12.0, 13.0])
    monkeypatch.setattr("pipeline.annotate.reporter.time.monotonic", lambda: next(clock))
    with Screen().progress("annotating", 100) as advance:
        advance(0)
        advance(10)
        advance(30, 2)
        advance(40, 2)
    assert capsys.readouterr().err.splitlines() == [
        "annotating: waiting for the first of 100, 5 s so far",
        "annotating: 30/100, 2.5 images/s, 2 rejected, 28 s left",
    ]


def test_markup_in_names_is_data(capsys):
    Screen().table("[bold]title", ["label"], [["[red]x[/red]"]])
    out = capsys.readouterr().out
    assert "[bold]title" in out
    assert "[red]x[/red]" in out
