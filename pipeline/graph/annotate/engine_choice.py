"""Chooses the engine of a run. Importing this module imports neither torch nor Ray."""

from pathlib import Path
from typing import Literal

from pipeline.annotate.input_plan import TUNE_FROM
from pipeline.annotate.local.local_server import worker_server
from pipeline.graph.ray_environment import asks_for_cluster
from schemas.options.annotate import AnnotateConfig

Engine = Literal["local", "ray"]


def choose_engine(config: AnnotateConfig, planned: int, tune_from: int = TUNE_FROM) -> Engine:
    """Return the engine of a run of so many ``planned`` images.

    ``auto`` takes Ray on a cluster, for a GPU, where Ray decodes in processes of its own, and for a run that is long
    enough for trials: they run on Ray, and compiling can make a network twice as fast. Elsewhere the local engine is
    faster on two cores and starts in a third of the time (`python -m tests.benchmarks.engines` measures both).
    """
    if chosen := _by_options(config):
        return chosen
    import torch  # noqa: PLC0415 - the module's docstring says why

    from pipeline.annotate.resources import worth_tuning  # noqa: PLC0415 - imports torch

    cuda = config.device != "cpu" and torch.cuda.is_available()
    return "ray" if cuda or worth_tuning(config, planned, tune_from) else "local"


def import_ahead(config: AnnotateConfig) -> None:
    """Let the server of the local workers import the network's libraries while this process does the same.

    Does nothing where the run will hardly be one of the local engine.
    """
    has_gpu = config.device != "cpu" and Path("/dev/nvidiactl").exists()
    if (_by_options(config) or ("ray" if has_gpu else "local")) == "local":
        worker_server()


def _by_options(config: AnnotateConfig) -> Engine | None:
    """Return the engine that the options and the environment choose; None leaves it to the machine and the images."""
    if config.engine != "auto":
        return config.engine
    return "ray" if asks_for_cluster(config.address) or config.decode == "remote" else None
