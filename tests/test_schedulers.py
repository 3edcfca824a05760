"""The Airflow DAG and the Dagster asset, each imported and run by its own library.

Neither is a dependency of the tests, so that each is looked for in an environment of its own: AIRFLOW_PYTHON and
DAGSTER_PYTHON name its Python, for example after `python -m venv e && e/bin/pip install apache-airflow`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.errors import HeldError, RejectedShareError, UsageError
from tests.jobs_on import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

SCHEDULES = ROOT / "jobs/schedule"
DAGSTER = {"DAGSTER_HOME": "", "DAGSTER_DISABLE_TELEMETRY": "1"}
RUN_DAG = """
from schedule import dag
tried = dag.test()
print("TASK", *[one.state for one in tried.get_task_instances()])
"""
RUN_ASSET = """
import dagster, schedule
done = dagster.materialize([schedule.camlake_labels], raise_on_error=False)
print("TASK", done.success, len(done.asset_materializations_for_node("camlake_labels")))
print([one.cron_schedule for one in schedule.definitions.schedules])
"""


def python_with(module: str, variable: str) -> str:
    """Return a Python that has a module; skips where there is none."""
    python = os.environ.get(variable, sys.executable)
    if subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode:
        pytest.skip(f"no {module} for {python}; {variable} names a Python that has it")
    return python


def copied(folder: Path, name: str, status: int) -> str:
    """Return a schedule of ``folder``, where a program in camlake's place notes its options and ends so."""
    text = (SCHEDULES / name).read_text()
    assert text.count('FOLDER = "/srv/camlake"') == 1
    program = folder / ".venv/bin/camlake"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> asked.txt\nexit {status}\n')
    program.chmod(0o755)
    return text.replace("/srv/camlake", str(folder))


def run(python: str, code: str, folder: Path, **environment: str) -> tuple[list[str], int]:
    """Run code that imports the schedule; return the words of its line TASK, and how often it started camlake."""
    done = subprocess.run(
        [python, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TASK ")]
    assert len(lines) == 1, done.stdout[-2000:] + done.stderr[-2000:]
    asked = (folder / "asked.txt").read_text().splitlines()
    assert set(asked) == {"annotate --config jobs/annotate-s3.yaml --log-format json"}
    return lines[0].split()[1:], len(asked)


@pytest.mark.parametrize(
    ("status", "state", "starts"),
    [
        (0, "success", 1),
        (HeldError.exit_status, "skipped", 1),
        (1, "failed", 4),
        (RejectedShareError.exit_status, "failed", 1),
    ],
)
def test_airflow_runs_the_dag(tmp_path, status, state, starts):
    python = python_with("airflow.sdk", "AIRFLOW_PYTHON")
    dags = tmp_path / "airflow/dags"
    dags.mkdir(parents=True)
    text = copied(tmp_path, "airflow_dag.py", status)
    assert text.count("timedelta(minutes=10)") == 1
    (dags / "schedule.py").write_text(text.replace("minutes=10", "seconds=0"))
    home = {"AIRFLOW_HOME": str(dags.parent), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PYTHONPATH": str(dags)}
    migrate = [python, "-m", "airflow", "db", "migrate"]
    subprocess.run(migrate, env={**os.environ, **home}, check=True, capture_output=True, timeout=200)
    assert run(python, RUN_DAG, tmp_path, **home) == ([state], starts)


@pytest.mark.parametrize(
    ("status", "words", "starts"),
    [
        (0, ["True", "1"], 1),
        (HeldError.exit_status, ["True", "0"], 1),
        (1, ["False", "0"], 4),
        (UsageError.exit_status, ["False", "0"], 1),
    ],
)
def test_dagster_materializes_the_asset(tmp_path, status, words, starts):
    python = python_with("dagster", "DAGSTER_PYTHON")
    text = copied(tmp_path, "dagster_asset.py", status)
    assert text.count("delay=600") == 1
    (tmp_path / "schedule.py").write_text(text.replace("delay=600", "delay=0.1"))
    assert run(python, RUN_ASSET, tmp_path, **DAGSTER) == (words, starts)


def test_a_stop_of_dagster_lets_camlake_end_in_order(tmp_path):
    python = python_with("dagster", "DAGSTER_PYTHON")
    text = copied(tmp_path, "dagster_asset.py", 0)
    assert text.count("max_retries=3") == 1
    (tmp_path / "schedule.py").write_text(text.replace("max_retries=3", "max_retries=0"))  # else Dagster tries again
    trap = "trap 'sleep 0.5; echo stopped >> asked.txt; exit 4' TERM"
    program = f'#!/bin/sh\n{trap}\necho "$@" >> asked.txt\nwhile :; do sleep 0.1; done\n'
    (tmp_path / ".venv/bin/camlake").write_text(program)
    asked = tmp_path / "asked.txt"
    with subprocess.Popen([python, "-c", RUN_ASSET], cwd=tmp_path, env=os.environ | DAGSTER) as process:
        try:
            while not asked.exists():
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
    assert asked.read_text().splitlines()[1:] == ["stopped"]
