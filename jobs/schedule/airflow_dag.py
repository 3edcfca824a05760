"""The nightly increment as an Airflow DAG: copy this file to Airflow's folder of DAGs, after changing FOLDER.

Where another run holds the output, the task is skipped: that run does the work.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

FOLDER = "/srv/camlake"
FINAL = (2, 3)
"""Wrong usage, and all work done but too many inputs rejected: trying again changes neither."""


class CamlakeOperator(BashOperator):
    """A command of camlake's, which is not tried again after the statuses FINAL."""

    def execute(self, context: Context) -> Any:
        """Run the command."""
        try:
            return super().execute(context)
        except AirflowException as error:
            process = self.subprocess_hook.sub_process
            if process and process.returncode in FINAL:
                raise AirflowFailException(str(error)) from error
            raise


with DAG(
    "camlake_annotate",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
) as dag:
    CamlakeOperator(
        task_id="annotate",
        cwd=FOLDER,
        bash_command=".venv/bin/camlake annotate --config jobs/annotate-s3.yaml --log-format json",
        skip_on_exit_code=[5],
        retries=3,
        retry_delay=timedelta(minutes=10),
    )
