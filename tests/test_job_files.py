"""The ready job files and scheduler manifests: each would start a run that camlake understands."""

import configparser
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs import annotate
from schemas.errors import HeldError, RejectedShareError, UsageError
from schemas.options.annotate import AnnotateConfig

JOBS = Path(__file__).resolve().parents[1] / "jobs"
JOB_FILES = sorted(JOBS.glob("*.yaml"))
STARTS = (["camlake", "annotate"], ["python", "-m", "jobs.annotate"])


def kubernetes() -> dict[str, dict[str, Any]]:
    """Return the manifest's documents by kind."""
    return {
        document["kind"]: document for document in yaml.safe_load_all((JOBS / "schedule/kubernetes.yaml").read_text())
    }


def rayjob() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(kubernetes()["ConfigMap"]["data"]["rayjob.yaml"])
    return job


def script(name: str) -> str:
    """Return a shell script of the manifest's ConfigMap."""
    text: str = kubernetes()["ConfigMap"]["data"][name]
    return text


def cron_lines() -> list[str]:
    lines = (JOBS / "schedule/crontab").read_text().splitlines()
    return [line for line in lines if line[:1].isdigit()]


def service() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",), strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(JOBS / "schedule/camlake-annotate.service")
    return parser


def scheduled_command(file: str) -> str:
    """Return the command line in a schedule that is a program."""
    (line,) = re.findall(r'"([^"]*camlake annotate [^"]*)"', (JOBS / "schedule" / file).read_text())
    return line


def commented_commands(file: Path) -> list[str]:
    """Return the command lines that a file's opening comment shows."""
    return [line for line in file.read_text().splitlines() if line.startswith("#") and "--config" in line]


def command_lines() -> dict[str, str]:
    """Return every command line of the project's job files, manifests and cluster file, by where it stands."""
    shown = {
        str(file.name): line for file in [*JOB_FILES, JOBS.parent / "cluster.yaml"] for line in commented_commands(file)
    }
    return shown | {
        "crontab": cron_lines()[0],
        "systemd": service()["Service"]["ExecStart"],
        "airflow": scheduled_command("airflow_dag.py"),
        "dagster": scheduled_command("dagster_asset.py"),
        "kubernetes": next(line for line in script("annotate.sh").splitlines() if line.startswith("python")),
    }


def arguments(line: str) -> list[str]:
    """Return what a command line gives to annotate, without the shell's redirections."""
    words = [Path(word).name if word.endswith("/camlake") else word for word in shlex.split(line.removeprefix("#"))]
    for start in STARTS:
        for at in range(len(words)):
            if words[at : at + len(start)] == start:
                rest = words[at + len(start) :]
                return rest[: rest.index(">>")] if ">>" in rest else rest
    raise LookupError(line)


def parse(args: list[str]) -> dict[str, Any]:
    """Return annotate's parameters as its own command line parser reads them; raises for an unknown option."""
    app = typer.Typer()
    app.command()(annotate.command)
    parameters: dict[str, Any] = typer.main.get_command(app).make_context("annotate", args).params
    return parameters


@pytest.mark.parametrize("file", JOB_FILES, ids=lambda file: file.name)
def test_a_job_file_resolves(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    config = AnnotateConfig.resolve(values)
    assert config.input == values["input"]
    assert config.out == values["out"]


def test_a_misspelled_key_would_be_found() -> None:
    with pytest.raises(UsageError, match="did you mean 'topk'"):
        AnnotateConfig.resolve({**yaml.safe_load(JOB_FILES[0].read_text()), "topkk": 3})


def test_the_kubernetes_job_file_resolves() -> None:
    config = AnnotateConfig.resolve(yaml.safe_load(kubernetes()["ConfigMap"]["data"]["annotate.yaml"]))
    group = rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert config.device == "cuda"
    assert config.actors == (1, group["maxReplicas"])
    assert (group["replicas"], group["minReplicas"]) == (0, 0), "no GPU where there is nothing to do"


@pytest.mark.parametrize(("where", "line"), command_lines().items(), ids=lambda value: value.split()[0])
def test_a_command_line_names_real_options_and_a_real_file(where: str, line: str) -> None:
    config = Path(parse(arguments(line))["config"])
    if where == "kubernetes":
        mount = rayjob()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0][
            "volumeMounts"
        ][0]
        assert config.parent == Path(mount["mountPath"])
        assert config.name in kubernetes()["ConfigMap"]["data"]
    else:
        assert config.parts[-2] == "jobs"
        assert (JOBS / config.name).is_file()


def test_an_unknown_option_would_be_found() -> None:
    with pytest.raises(typer.TyperException, match="--no-such-option"):
        parse(["--config", "job.yaml", "--no-such-option"])


def test_the_cron_line_has_five_fields_of_time() -> None:
    (line,) = cron_lines()
    minute, hour, *dates = line.split()[:5]
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24
    assert dates == ["*", "*", "*"]


def test_a_held_output_is_no_failure_of_any_schedule() -> None:
    """The crontab's own line tells nobody: what it says goes to the log."""
    assert cron_lines()[0].endswith(" >> camlake.log 2>&1")
    assert f"skip_on_exit_code=[{HeldError.exit_status}]" in (JOBS / "schedule/airflow_dag.py").read_text()
    assert f"HELD = {HeldError.exit_status}\n" in (JOBS / "schedule/dagster_asset.py").read_text()


@pytest.mark.parametrize("file", ["airflow_dag.py", "dagster_asset.py"])
def test_what_no_second_try_changes_is_not_tried_again(file: str) -> None:
    final = (UsageError.exit_status, RejectedShareError.exit_status)
    assert f"FINAL = {final}\n" in (JOBS / "schedule" / file).read_text()


def test_systemd_starts_the_service_from_a_working_copy() -> None:
    unit = service()["Service"]
    assert unit["Type"] == "oneshot"
    assert unit["ExecStart"].startswith(unit["WorkingDirectory"] + "/.venv/bin/camlake ")
    assert int(unit["SuccessExitStatus"]) == HeldError.exit_status


def test_kubernetes_runs_one_at_a_time_and_may_create_the_job() -> None:
    documents = kubernetes()
    pod = documents["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert documents["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    (container,) = pod["containers"]
    assert container["command"] == ["sh", f"{container['volumeMounts'][0]['mountPath']}/submit.sh"]
    assert rayjob()["spec"]["entrypoint"] == "sh /etc/camlake/annotate.sh"
    assert "--filename /etc/camlake/rayjob.yaml" in script("submit.sh")
    assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
    assert documents["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "list"]}
    ]
    assert rayjob()["spec"]["shutdownAfterJobFinishes"] is True


def shell(name: str, program: str, does: str, folder: Path) -> tuple[int, str]:
    """Run a script of the ConfigMap with a ``program`` that ``does`` something; return status and standard output."""
    stand_in = folder / program
    stand_in.write_text(f"#!/bin/sh\n{does}\n")
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script(name)], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(("status", "seen"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (HeldError.exit_status, 0)])
def test_a_night_that_another_run_keeps_from_working_is_no_failure(tmp_path: Path, status: int, seen: int) -> None:
    assert shell("annotate.sh", "python", f"exit {status}", tmp_path) == (seen, "")


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("", "created\n"),
        ("camlake-annotate-a Complete\ncamlake-annotate-b Failed", "created\n"),
        ("camlake-annotate-a Complete\ncamlake-annotate-b Running", "still at work: camlake-annotate-b Running;"),
        ("camlake-annotate-c ", "still at work: camlake-annotate-c ;"),
    ],
)
def test_a_night_leaves_an_earlier_one_at_work_alone(tmp_path: Path, listed: str, said: str) -> None:
    does = f"if [ $1 = get ]; then printf '{listed}\n'; else echo created; fi"
    status, out = shell("submit.sh", "kubectl", does, tmp_path)
    assert status == 0
    assert out.startswith(said)


def test_a_cluster_that_does_not_answer_fails_the_submission(tmp_path: Path) -> None:
    assert shell("submit.sh", "kubectl", "[ $1 = create ] && echo created; exit 7", tmp_path) == (7, "")
