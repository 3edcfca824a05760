"""Figures of a training in TensorBoard's files and in MLflow's store, read back by their own readers."""

import warnings

import pytest

from pipeline.graph.train.trackers import tracking
from schemas.errors import CamlakeError
from schemas.options.config import StorageConfig

SETTINGS = {"model": "alexnet_gap", "lr": None, "epochs": 3}
EPOCHS = [{"epoch": number, "train_loss": 1 / number, "val_top1": number / 10} for number in (1, 2, 3)]


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_tensorboard_has_every_epoch_once_after_a_kill(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tracking(str(tmp_path), StorageConfig(), SETTINGS, [], print) as track:
        track(EPOCHS[0])
        track({**EPOCHS[1], "train_loss": 9.0})  # Told, and lost before it was written down.
    with tracking(str(tmp_path), StorageConfig(), SETTINGS, EPOCHS[:1], print) as track:
        for epoch in EPOCHS[1:]:
            track(epoch)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"train_loss", "val_top1"} <= set(events.Tags()["scalars"])
    found = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert found == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_mlflow_gets_settings_and_all_epochs(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, of its stores.
        with tracking(str(tmp_path / "out"), StorageConfig(), SETTINGS, EPOCHS[:1], print) as track:
            for epoch in EPOCHS[1:]:
                track(epoch)
        client = mlflow.MlflowClient()
        (run,) = client.search_runs(["0"])
        assert run.info.status == "FINISHED"
        assert run.data.params == {"model": "alexnet_gap", "lr": "None", "epochs": "3"}
        steps = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "val_top1")]
    assert steps == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_store_that_mlflow_cannot_use_is_named(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://server")
    with (
        pytest.raises(CamlakeError, match="MLflow at no-such-scheme://server"),
        tracking(str(tmp_path), StorageConfig(), SETTINGS, [], print),
    ):
        pass


def test_a_store_that_is_lost_is_told_once_and_the_training_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    said = []

    def gone(*_, **__):
        raise mlflow.exceptions.MlflowException("no more room")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tracking(str(tmp_path / "out"), StorageConfig(), SETTINGS, [], said.append) as track:
            track(EPOCHS[0])
            monkeypatch.setattr(mlflow, "log_metrics", gone)
            for epoch in EPOCHS[1:]:
                track(epoch)
        mlflow.end_run()
    (note,) = said
    assert "MLflow at" in note
    assert "no more room" in note


def test_without_a_tracking_uri_mlflow_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tracking(str(tmp_path / "out"), StorageConfig(), SETTINGS, [], print) as track:
        track(EPOCHS[0])
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == []
