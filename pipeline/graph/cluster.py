"""Connects to Ray: to a running cluster, or to a Ray that is started here for this run."""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext

from pipeline.annotate.resources import LOGICAL_PER_CORE, Machine
from pipeline.graph.ray_environment import asks_for_cluster, set_environment
from schemas.errors import CamlakeError, Stopped, UsageError

SECOND_START_AFTER_S = 20.0
"""Wait in seconds between a start of Ray that failed and the second one: other work may end in this time."""


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Machine]:
    """Connect to the Ray cluster at ``address`` and yield its size; without an address start a Ray here and stop it.

    A Ray to which this process is already connected is used and left running. Raises UsageError for an address where
    no cluster answers, and for a folder that hides camlake's packages from the workers of a running Ray.
    """
    cores = os.cpu_count() or 1
    ours = not ray.is_initialized()
    # Ray reports dead workers on standard output, which is only for results.
    with redirect_stdout(sys.stderr):
        if ours:
            _connect(address, cores)
        elif folder := _shadowing_folder():
            raise UsageError(
                f"{folder} has the name of a package of camlake's, and the workers of the Ray that runs already would "
                "import it instead; rename it, start Ray from another folder, or let camlake start it"
            )
        try:
            _quiet()
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            alone = ours and not asks_for_cluster(address)
            yield Machine(resources.get("CPU", 1.0), resources.get("GPU", 0.0), cores if alone else None)
        finally:
            if ours:
                ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces when it starts by one that ends the process at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:  # Ray's own handler raises it.
        raise Stopped from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _connect(address: str | None, cores: int) -> None:
    # In this variable `ray job submit` and the workers of Ray find the address of their cluster.
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        _start(cores)
        return
    try:
        with _own_sigterm(), _quiet_core():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, runtime_env=_runtime_env())
    except (ray.exceptions.AuthenticationError, ConnectionError, ValueError) as error:
        # Of a cluster that wants a token Ray may say only that it does not answer; then the cause has the reason.
        if isinstance(error, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in str(error.__cause__):
            raise UsageError(
                f"--address {address!r}: this cluster wants a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or"
                " RAY_AUTH_TOKEN_PATH to the cluster's"
            ) from error
        raise UsageError(
            f"--address {address!r}: no Ray cluster answers there; start one with `ray start --head`"
        ) from error


def _start(cores: int) -> None:
    """Start a Ray here; a start that fails, as on a busy machine where Ray's own limit is 30 s, is tried once more."""
    for patience_s in (SECOND_START_AFTER_S, 0.0):
        try:
            with _own_sigterm(), _quiet_core():
                ray.init(
                    address="local",
                    num_cpus=cores * LOGICAL_PER_CORE,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    runtime_env=_runtime_env(),
                )
        except Exception as error:  # Ray raises a plain Exception where its processes do not come up in time.
            ray.shutdown()
            if not patience_s:
                load = f"its load is {os.getloadavg()[0]:.0f} on {cores} cores"
                reason = str(error).strip().splitlines()[0]
                raise CamlakeError(f"Ray did not start twice; is this machine overloaded ({load})? {reason}") from error
            time.sleep(patience_s)
        else:
            return


def _runtime_env() -> dict[str, Any] | None:
    """Return Ray's setting that makes every worker import ``camlake`` first; None where no other package is in the way.

    The import makes a worker use camlake's packages; ``use_own`` without a name does nothing more.
    """
    return {"worker_process_setup_hook": "camlake.own_packages.use_own"} if _shadowing_folder() else None


def _shadowing_folder() -> Path | None:
    """Return the folder that Ray's workers would import as ``pipeline`` or ``schemas``; None if it is camlake's.

    Ray puts the driver's working folder first on the import path of its workers.
    """
    for name in ("pipeline", "schemas"):
        spec = PathFinder.find_spec(name, [str(Path.cwd()), *sys.path])
        # Without a spec the import hook of an editable install finds the package, and no other folder hides it.
        found = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
        ours = Path(sys.modules[name].__path__[0]).resolve()
        others = [Path(place) for place in found if Path(place).resolve() != ours]
        if others:
            return others[0]
    return None


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Hide standard error during the block, because the core of Ray prints its log level there when it starts."""
    set_environment()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _quiet() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False  # The job reports its own progress.
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Few images can be one block for two actors.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
