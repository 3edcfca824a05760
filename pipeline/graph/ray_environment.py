"""Settings that Ray reads from the environment alone: each has a name that Ray may change, and here its reason.

``tests/test_ray_private.py`` fails where an installed Ray no longer knows one of the names.
"""

import os

USAGE_STATS = "RAY_USAGE_STATS_ENABLED"
KEEP_WORKERS_MS = "RAY_idle_worker_killing_time_threshold_ms"
BACKEND_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"

IDLE_WORKER_MS = 600_000
"""How long a Ray started here keeps workers that wait: longer than any pause between the tasks of a run."""


def report_no_usage() -> None:
    """Let a Ray that this process starts send no usage statistics, unless the user's environment wants them."""
    os.environ.setdefault(USAGE_STATS, "0")


def keep_idle_workers() -> None:
    """Let a Ray that this process starts keep the workers that wait for a task.

    By its own rule Ray ends the idle workers beyond one for each CPU after a second. As a task of camlake takes half a
    CPU, Ray would start new workers again and again: measured, 7 times the CPU seconds of all tasks and a third of the
    speed.
    """
    os.environ.setdefault(KEEP_WORKERS_MS, str(IDLE_WORKER_MS))


def log_only_fatal_errors() -> None:
    """Keep the core of Ray from printing an error for every actor pool of Ray Data; errors that matter are raised."""
    os.environ.setdefault(BACKEND_LOG_LEVEL, "fatal")
