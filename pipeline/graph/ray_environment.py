"""Settings that Ray reads from the environment alone; ``tests/test_ray_private.py`` fails where Ray changes a name."""

import os

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray ends the idle workers beyond one for each CPU after a second. As a task of camlake takes half a CPU, it would
    # start new workers again and again: measured, 7 times the CPU seconds of all tasks and a third of the speed.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Below this level the core of Ray prints an error for every actor pool of Ray Data. Errors that matter are raised.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""For a Ray that this process starts; the log level also for a process that joins a running one."""


def set_environment() -> None:
    """Set the environment that Ray reads when it starts; a value that the user has set stays."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
