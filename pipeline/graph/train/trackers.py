"""Reports a training to the experiment trackers TensorBoard and MLflow, where they are installed."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.graph.train.checkpoints import Epoch
from pipeline.storage.filesystems import connect
from schemas.errors import CamlakeError
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url

Track = Callable[[Epoch], None]


@contextmanager
def tracking(
    out: str,
    storage: StorageConfig,
    settings: Mapping[str, Any],
    history: Sequence[Epoch],
    say: Callable[[str], None],
) -> Iterator[Track]:
    """Yield a function that reports the figures of an epoch to every tracker; ``history`` has the earlier epochs.

    TensorBoard's files go to ``out``/tensorboard where ``out`` is a folder of this machine. MLflow is used where its
    tracking URI is set, for example by MLFLOW_TRACKING_URI; without a URI MLflow would make a database in the current
    folder. A resumed training is a new run of MLflow that has all epochs.

    Raises CamlakeError where MLflow does not answer at the beginning. Where it fails later, ``say`` gets one line, and
    the training goes on without MLflow.
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
    # A killed training may have reported epochs that it did not write to its output; purge_step removes them.
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
    has_failed = False

    def log(epoch: Epoch) -> None:
        mlflow.log_metrics(dict(epoch), step=int(epoch["epoch"]))

    def unless_failed(work: Callable[[], object]) -> None:
        nonlocal has_failed
        try:
            if not has_failed:
                work()
        except mlflow.exceptions.MlflowException as error:
            has_failed = True
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
        yield lambda epoch: unless_failed(lambda: log(epoch))
        status = "FINISHED"
    finally:
        unless_failed(lambda: mlflow.end_run(status))


def _problem(mlflow: Any, error: Exception) -> str:
    return f"MLflow at {safe_url(mlflow.get_tracking_uri())}: {str(error).strip().splitlines()[0]}"


def _nothing(epoch: Epoch) -> None:
    """Report nothing; used in place of a tracker that is not used."""
