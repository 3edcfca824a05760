"""Localization methods and views through the whole job, and what they do to the settings of an output."""

import json

import pytest

from jobs.terminal.console import Screen
from jobs.terminal.dry_run import print_estimate
from pipeline.annotate.model import load_model
from pipeline.annotate.spec import run_request
from pipeline.arrays.calibration import Calibration
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.calibrations import write_calibration
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.run import check_settings
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from tests.jobs_on import run_annotate


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 6, seed=5, size_hw=(96, 128), broken=0)
    return folder / "images"


def test_a_method_with_views_gives_an_output_that_adds_up(images, tmp_path):
    out = tmp_path / "out"
    counts = run_annotate(images, out, method="gradcam", tta="flip", scales="1,0.5").counts
    assert counts.annotated == 6
    assert not list(verify(*connect(str(out), StorageConfig())).problems)
    with camlake.open(str(out)) as lake:
        assert lake.sql("SELECT DISTINCT method FROM boxes").fetchall() == [("gradcam",)]
        assert lake.sql("SELECT DISTINCT heat_h, heat_w FROM heatmaps").fetchall() == [(14, 14)]
        assert lake.sql("SELECT min(heat_min) >= 0 FROM heatmaps").fetchall() == [(True,)]


def test_another_output_lends_its_calibration(images, tmp_path, capsys):
    lender, out = tmp_path / "lender", tmp_path / "out"
    run_annotate(images, lender, limit=2)
    capsys.readouterr()
    with pytest.raises(UsageError, match=r"^--calibration \S+lender: has none of camlake_demo-\w+; `camlake evaluate"):
        run_annotate(images, out, limit=3, calibration=str(lender))
    assert "starting Ray" not in capsys.readouterr().err
    dry = {"model": "camlake_demo", "dry_run": True, "calibration": str(lender)}
    with pytest.raises(UsageError, match=r"^--calibration \S+lender: has none of"):
        print_estimate(AnnotateConfig.resolve({"input": str(images), "out": str(out), **dry}), Screen())
    with camlake.open(str(lender)) as lake:
        run = lake.runs[0]
    flat = Calibration(means=(0.0,) * 6, scales=(1.0,) * 6, weights=(0.0,) * 6, bias=0.0)
    write_calibration(*connect(str(lender), StorageConfig()), run.model, flat, run.settings)
    with pytest.raises(UsageError, match=r"--calibration \S+lender: fitted on boxes of --threshold 0.2, not 0.3"):
        run_annotate(images, out, limit=3, calibration=str(lender), threshold=0.3)
    assert not list(out.glob("_runs/*/manifest.json")), "nothing is begun"
    run_annotate(images, out, limit=3, calibration=str(lender))
    with camlake.open(str(out)) as lake:
        assert lake.sql("SELECT DISTINCT box_score FROM boxes").fetchall() == [(0.5,)]


def test_rows_of_other_methods_and_views_are_not_mixed_in(images, tmp_path):
    out = tmp_path / "out"
    run_annotate(images, out, limit=2)
    # As versions wrote it that had no choice of methods.
    (path,) = out.glob("_runs/*/manifest.json")
    document = json.loads(path.read_text())
    for name in ("method", "tta", "scales"):
        assert document["settings"].pop(name) in ("cam", "none", [1.0])
    path.write_text(json.dumps(document))
    for options, refusal in (
        ({"method": "layercam"}, "--method: .* were made with cam, not layercam"),
        ({"tta": "tencrop"}, "--tta: .* were made with none, not tencrop"),
        ({"scales": "1,2"}, "--scales: .* were made with 1.0, not 1.0,2.0"),
    ):
        with pytest.raises(UsageError, match=refusal):
            run_annotate(images, out, **options)
    assert run_annotate(images, out).counts.annotated == 4


def test_an_empty_output_takes_any_method(tmp_path):
    config = AnnotateConfig(input="in", out=str(tmp_path), model="camlake_demo", method="backprop")
    request = run_request(config, load_model(config))
    check_settings(request, *connect(str(tmp_path), config))
    assert request.settings["method"] == "backprop"
