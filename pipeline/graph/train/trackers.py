"""Tells experiment trackers how a training goes: TensorBoard and MLflow, each where it is installed."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.graph.train.checkpoints import Epoch
from pipeline.storage.filesystems import connect, safe_url
from schemas.config import StorageConfig
from schemas.errors import CamlakeError

Track = Callable[[Epoch], None]


@contextmanager
def tracking(
    out: str,
    storage: StorageConfig,
    settings: Mapping[str, Any],
    history: Sequence[Epoch],
    say: Callable[[str], None],
) -> Iterator[Track]:
    """Yield what passes an epoch's figures on to all trackers there are; ``history`` is what they heard before.

    TensorBoard's files go to ``out``/tensorboard, where that is a folder of this machine. MLflow hears of it where its
    tracking URI is set, as by MLFLOW_TRACKING_URI; it would else make a database in the current folder. A training that
    goes on is a new run there, with all of its epochs.

    Raises CamlakeError where MLflow can't be told at the beginning; what it can't be told later is said by ``say``,
    once, and the training goes on without it.
    """
    with ExitStack() as stack:
        trackers = _tensorboard(out, storage, history), _mlflow(out, settings, history, say)
        tracks = [stack.enter_context(one) for one in trackers]

        def track(epoch: Epoch) -> None:
            for one in tracks:
                one(epoch)

        yield track


@contextmanager
def _tensorboard(out: str, storage: StorageConfig, history: Sequence[Epoch]) -> Iterator[Track]:
    fs, root = connect(out, storage)
    if not isinstance(fs, LocalFileSystem) or not importlib.util.find_spec("tensorboard"):
        yield _nothing
        return
    # Epochs from purge_step on may have been told by a training that was killed before it wrote them down.
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
        f"{root}/tensorboard", purge_step=len(history) + 1
    )

    def track(epoch: Epoch) -> None:
        for name, value in epoch.items():
            writer.add_scalar(name, value, int(epoch["epoch"]))
        writer.flush()

    with writer:
        yield track


@contextmanager
def _mlflow(
    out: str, settings: Mapping[str, Any], history: Sequence[Epoch], say: Callable[[str], None]
) -> Iterator[Track]:
    mlflow = importlib.import_module("mlflow") if importlib.util.find_spec("mlflow") else None
    if mlflow is None or not mlflow.is_tracking_uri_set():
        yield _nothing
        return
    lost = False

    def log(epoch: Epoch) -> None:
        mlflow.log_metrics(dict(epoch), step=int(epoch["epoch"]))

    def unless_lost(work: Callable[[], object]) -> None:
        nonlocal lost
        try:
            if not lost:
                work()
        except mlflow.exceptions.MlflowException as error:
            lost = True
            say(f"note: {_problem(mlflow, error)}; it hears no more of this training")

    try:
        mlflow.start_run(run_name=f"camlake train {safe_url(out)}")
        mlflow.log_params(dict(settings))
        for epoch in history:
            log(epoch)
    except mlflow.exceptions.MlflowException as error:
        raise CamlakeError(_problem(mlflow, error)) from error
    status = "FAILED"
    try:
        yield lambda epoch: unless_lost(lambda: log(epoch))
        status = "FINISHED"
    finally:
        unless_lost(lambda: mlflow.end_run(status))


def _problem(mlflow: Any, error: Exception) -> str:
    return f"MLflow at {safe_url(mlflow.get_tracking_uri())}: {str(error).strip().splitlines()[0]}"


def _nothing(epoch: Epoch) -> None:
    """Pass nothing on: there is no such tracker."""
