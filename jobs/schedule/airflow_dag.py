"""The nightly increment as an Airflow DAG: copy this file to Airflow's folder of DAGs, after changing FOLDER.

Where another run holds the output, the task is skipped: that run does the work.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

FOLDER = "/srv/camlake"

with DAG(
    "camlake_annotate",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
) as dag:
    BashOperator(
        task_id="annotate",
        cwd=FOLDER,
        bash_command=".venv/bin/camlake annotate --config jobs/annotate-s3.yaml --log-format json",
        skip_on_exit_code=[5],
        retries=3,
        retry_delay=timedelta(minutes=10),
    )
