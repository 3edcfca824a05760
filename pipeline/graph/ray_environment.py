"""Settings that Ray reads from the environment only; ``tests/test_ray_private.py`` fails where Ray changes a name."""

import os

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # After a second Ray ends idle workers, except one for each CPU. A task of camlake takes half a CPU, so Ray would
    # start new workers again and again: measured, 7 times the CPU seconds of all tasks and a third of the speed.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Below this level the core of Ray prints an error for every actor pool of Ray Data. Errors that matter are raised.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Values for a Ray that this process starts; the log level also applies where the process joins a running Ray."""


def asks_for_cluster(address: str | None) -> bool:
    """Return whether a running cluster is named, by the option ``--address`` or by Ray's own variable."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def set_environment() -> None:
    """Set the environment that Ray reads when it starts; a value that the user has set stays."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
