"""The nightly increment as a Dagster asset: `dagster dev --python-file dagster_asset.py`, after changing FOLDER.

Where another run holds the output, nothing is materialized and nothing fails: that run does the work.
"""

import shlex
import subprocess
from collections.abc import Iterator

import dagster

FOLDER = "/srv/camlake"
COMMAND = ".venv/bin/camlake annotate --config jobs/annotate-s3.yaml --log-format json"
HELD = 5
"""The exit status where another run holds the output."""
FINAL = (2, 3)
"""Wrong usage, and all work done but too many inputs rejected: trying again changes neither."""


@dagster.asset(output_required=False, retry_policy=dagster.RetryPolicy(max_retries=3, delay=600))
def camlake_labels(context: dagster.AssetExecutionContext) -> Iterator[dagster.MaterializeResult]:
    """Rows for the new images."""
    process = subprocess.Popen(shlex.split(COMMAND), cwd=FOLDER)
    try:
        status = process.wait()
    except BaseException:  # Dagster ends the step: camlake commits what was decided, within 20 seconds.
        process.terminate()
        process.wait(25)
        raise
    if status == HELD:
        context.log.info("another run holds the output")
        return
    if status:
        raise dagster.Failure(f"camlake ended with status {status}", allow_retries=status not in FINAL)
    yield dagster.MaterializeResult()


job = dagster.define_asset_job("camlake_annotate", selection=[camlake_labels])
definitions = dagster.Definitions(
    assets=[camlake_labels], schedules=[dagster.ScheduleDefinition(job=job, cron_schedule="15 2 * * *")]
)
