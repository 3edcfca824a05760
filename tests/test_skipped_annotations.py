"""Every verb that reads a truth names the annotations that it can't use; ``evaluate`` and ``--classes`` elsewhere."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import foreground
from jobs.terminal.console import Screen
from pipeline.graph.train.training import labelled_images
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs.page.run_report import report
from schemas.errors import ModelError
from schemas.options.reading import ReportConfig
from schemas.options.train import TrainConfig
from tests.fake_lake import FakeLake

NAMED = "1 annotation of {} can't be used and doesn't count: annotation 9: no bbox."


def write_truth(path: Path, images: list[str], label: str) -> Path:
    """Write a COCO file with a box for each image, and one annotation without a box."""
    annotations = [{"id": at, "image_id": at, "category_id": 1, "bbox": [1, 1, 20, 20]} for at in range(len(images))]
    document = {
        "images": [{"id": at, "file_name": name} for at, name in enumerate(images)],
        "categories": [{"id": 1, "name": label}],
        "annotations": [*annotations, {"id": 9, "image_id": 0, "category_id": 1}],
    }
    path.write_text(json.dumps(document))
    return path


def test_report(local: FakeLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local.run({"a": "v1"})
    no_scores = SimpleNamespace(rows=list)  # The made-up rows have none of the settings that scores need.
    monkeypatch.setattr("pipeline.outputs.page.run_report.evaluate", lambda *arguments, **options: no_scores)
    truth = write_truth(tmp_path / "truth.json", ["a"], "cat")
    page = Path(report(ReportConfig(out=local.out, pictures=0, truth=str(truth)))).read_text()
    assert NAMED.format("the truth").replace("'", "&#39;") in page


def test_foreground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write_truth(tmp_path / "truth.json", ["a.jpg"], "cat")
    config = {"input": str(tmp_path), "out": str(tmp_path / "fg.safetensors"), "model": "none", "truth": str(truth)}
    with pytest.raises(ModelError, match="unknown network 'none'"):
        foreground.run(foreground.ForegroundConfig.resolve(config), Screen())
    assert NAMED.format(f"--truth {truth}") in capsys.readouterr().err


def test_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path, 10, seed=1, size_hw=(48, 64), broken=0)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    rows = "\n".join(f"images/{name},{name.rpartition('-')[0]}" for name in names)
    (tmp_path / "train.csv").write_text(f"uri,label\n{rows}\n")
    truth = write_truth(tmp_path / "truth.json", names, names[0].rpartition("-")[0])
    config = {"input": str(tmp_path / "train.csv"), "out": str(tmp_path / "out"), "supervision": "boxes"}
    labelled_images(TrainConfig.resolve({**config, "boxes": str(truth), "val_share": 0}), Screen())
    assert NAMED.format(f"--boxes {truth}") in capsys.readouterr().err
