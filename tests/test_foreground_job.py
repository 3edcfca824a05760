"""The job: a direction given, kept, learned or refused; old outputs go on as they were; the command and evaluate."""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console

from jobs.evaluate import run as run_evaluate
from jobs.foreground import ForegroundConfig, run
from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.annotate.annotate_stage import AnnotateStage
from pipeline.annotate.decode_stage import DecodeStage
from pipeline.annotate.foreground import foreground_choice as choosing
from pipeline.annotate.foreground import foreground_learning
from pipeline.annotate.image_reader import ImageReader
from pipeline.annotate.model import load_model
from pipeline.annotate.resources import Machine, plan_compute
from pipeline.annotate.spec import annotate_spec, decode_spec
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.models.localize.foreground import (
    Foreground,
    ForegroundCard,
    foreground_bytes,
    foreground_of,
    shipped_foreground,
    stride16_name,
    values_sha256,
)
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.rows import split_rows
from schemas.errors import ModelError, StoreError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.options.reading import EvaluateConfig
from schemas.options.rebox import ReboxConfig
from tests.jobs_on import run_annotate
from tests.references.equal_rows import same_rows

TENSOR = "features.4.relu"
AUTO = {"box_rule": "auto", "min_prob": 0.0}
SIDES = ["xmin", "ymin", "xmax", "ymax"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 48, seed=5, size_hw=(96, 128), broken=1)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A direction of the demo's network that nobody learned, in a file."""
    model = load_model(AnnotateConfig(input="x", out="y", model="camlake_demo"))
    card = ForegroundCard(
        "camlake_demo", values_sha256(model.weights.state), TENSOR, (14, 14), threshold=0.44, right_share=0.5
    )
    generator = torch.Generator().manual_seed(1)
    vector = torch.nn.functional.normalize(torch.randn(80, generator=generator), dim=0)
    path = tmp_path_factory.mktemp("files") / "demo.safetensors"
    path.write_bytes(foreground_bytes(Foreground(card, torch.zeros(80), vector)))
    return path


@pytest.fixture(scope="module")
def fused(corpus, file, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "fused"
    run_annotate(corpus / "images", out, foreground=str(file), **AUTO)
    return out


def rows_of(out, table="boxes"):
    with camlake.open(str(out)) as lake:
        return (
            lake.pandas(table).sort_values(["uri", "rank"] if table == "boxes" else "image_id").reset_index(drop=True)
        )


def test_the_rows_say_what_they_were_made_with(fused, file):
    boxes, maps = rows_of(fused), rows_of(fused, "foreground")
    assert set(boxes["method"]) == {"cam*foreground"}
    assert set(boxes["threshold"]) == {np.float32(0.44)}, "the file's"
    assert np.allclose(boxes["box_score"], boxes["class_prob"] * 0.5, atol=1e-6)
    assert (maps["fg_h"] * maps["fg_w"]).tolist() == [196] * 48
    with camlake.open(str(fused)) as lake:
        manifest = lake.runs[-1]
    digest = foreground_of(file.read_bytes(), "x").digest
    assert manifest.settings["foreground"] == manifest.lineage.foreground == digest
    assert manifest.settings["outputs"] == ["boxes", "heatmaps", "features", "foreground"]
    assert verify(*connect(str(fused), StorageConfig())).problems == ()


def test_ray_gives_what_a_plain_loop_gives(fused, corpus, file):
    options = {"model": "camlake_demo", "topk": 2, "batch_size": 8, "precision": "fp32", "min_prob": 0.0}
    config = AnnotateConfig(input=str(corpus / "images"), out="unused", **options)
    model = dataclasses.replace(load_model(config), foreground=foreground_of(file.read_bytes(), "x"))
    config, compute = choosing.with_foreground(config, model.foreground), plan_compute(config, Machine(4, 0, 1))
    plan = pa.Table.from_batches(list_inputs(config.input, config).batches).sort_by("uri")
    decode = DecodeStage(decode_spec(config, model))
    annotate = AnnotateStage(annotate_spec(config, model, compute.runtime), model.weights.state)
    wide = annotate(decode(ImageReader(config, "unused", config.max_bytes).fetch(plan)))
    tables = split_rows(wide, "run", config.outputs)
    boxes = tables["boxes"].to_pandas().sort_values(["uri", "rank"])
    by_ray = rows_of(fused)
    assert by_ray["class_id"].tolist() == boxes["class_id"].tolist()
    assert np.allclose(by_ray[SIDES], boxes[SIDES], atol=0.05)
    maps = tables["foreground"].to_pandas().sort_values("image_id")
    assert np.allclose(rows_of(fused, "foreground")["fg_max"], maps["fg_max"], atol=1e-5)


@pytest.mark.slow
def test_ray_and_batches_of_one_give_the_same_boxes(fused, corpus, file, tmp_path, ray_session):
    for name, options in {"ray": {"engine": "ray"}, "one": {"batch_size": 1}}.items():
        run_annotate(corpus / "images", tmp_path / name, foreground=str(file), **AUTO, **options)
        for table in ("images", "boxes", "heatmaps", "foreground", "features"):
            assert same_rows(fused, tmp_path / name, table) > 0, (name, table)


def test_a_later_run_takes_what_the_output_keeps(fused, corpus, file):
    assert run_annotate(corpus / "images", fused, **AUTO).counts.planned == 0
    with pytest.raises(UsageError, match=r"^--foreground: .* were made with [0-9a-f]{64}, not off"):
        run_annotate(corpus / "images", fused, foreground="off", threshold=0.44, **AUTO)
    kept = next((fused / "_foreground").iterdir())
    content = kept.read_bytes()
    kept.unlink()
    with pytest.raises(StoreError, match="the figure/ground direction of the output's rows is missing"):
        run_annotate(corpus / "images", fused, **AUTO)
    kept.write_bytes(content)


def test_rebox_fuses_from_the_tables_alone(fused, tmp_path):
    rebox(ReboxConfig.resolve({"labels": str(fused), "out": str(tmp_path / "new"), "min_prob": 0.0}), Screen())
    old, new = rows_of(fused), rows_of(tmp_path / "new")
    assert len(old) == len(new)
    assert np.median(np.abs(old[SIDES].to_numpy() - new[SIDES].to_numpy())) < 0.2
    assert (np.abs(old[SIDES].to_numpy() - new[SIDES].to_numpy()).max(1) < 2).mean() > 0.9
    assert set(new["method"]) == {"cam*foreground"}
    assert np.allclose(old["box_score"], new["box_score"])


def test_rebox_without_it_gives_plain_boxes(fused, corpus, tmp_path, capsys):
    options = {"labels": str(fused), "out": str(tmp_path / "new"), "min_prob": 0.0, "foreground": "off"}
    rebox(ReboxConfig.resolve(options), Screen())
    assert "boxes come from class maps alone" in capsys.readouterr().err
    run_annotate(corpus / "images", tmp_path / "plain", foreground="off", **AUTO)
    plain, new = rows_of(tmp_path / "plain"), rows_of(tmp_path / "new")
    assert set(new["method"]) == set(plain["method"]) == {"cam"}
    assert np.median(np.abs(plain[SIDES].to_numpy() - new[SIDES].to_numpy())) < 0.2
    config = {"labels": str(tmp_path / "plain"), "out": str(tmp_path / "newer"), "foreground": "x.safetensors"}
    with pytest.raises(UsageError, match="has no maps in foreground"):
        rebox(ReboxConfig.resolve(config), Screen())


def test_an_output_of_other_defaults_goes_on_as_it_was(corpus, tmp_path, capsys):
    run_annotate(corpus / "images", tmp_path, limit=4)
    config = {"input": str(corpus / "images"), "out": str(tmp_path), "model": "camlake_demo", "topk": 2}
    from pipeline.graph.annotate.driver import annotate

    settings = annotate(AnnotateConfig.resolve({**config, "limit": 8, "actors": 1}), Screen()).settings
    assert (settings["box_rule"], settings["threshold"], settings["min_prob"]) == ("paper", [0.2], 0.0)
    said = "continued with the rule of the rows that are there: --box-rule paper --threshold 0.2 --min-prob 0.0"
    assert said in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"^--box-rule: .* were made with paper, not auto"):
        annotate(AnnotateConfig.resolve({**config, "box_rule": "auto"}), Screen())


class TestLearned:
    @pytest.fixture(autouse=True)
    def _tensor(self, monkeypatch):
        monkeypatch.setattr(choosing, "shipped_foreground", lambda network, state: None)
        monkeypatch.setattr(choosing, "stride16_name", lambda network: TENSOR)
        monkeypatch.setattr(foreground_learning, "stride16_name", lambda network: TENSOR)

    def test_from_the_runs_own_images(self, corpus, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(choosing, "LEAST_IMAGES", 40)
        monkeypatch.setattr("pipeline.arrays.figure_ground.LEAST_COSINE", 0.0)
        manifest = run_annotate(corpus / "images", tmp_path, **AUTO)
        assert "foreground: learned from 48 images" in capsys.readouterr().err
        kept = foreground_of(next((tmp_path / "_foreground").iterdir()).read_bytes(), "kept")
        assert manifest.settings["foreground"] == kept.digest
        assert kept.card.facts["images"] == 48

    def test_not_from_few_images(self, corpus, tmp_path, capsys):
        assert run_annotate(corpus / "images", tmp_path, limit=3, **AUTO).settings["foreground"] == "off"
        assert "foreground: none, for fewer than 100 images" in capsys.readouterr().err

    def command(self, corpus, tmp_path, **options):
        screen = Screen()
        screen.out = Console(file=io.StringIO(), width=200)
        values = {"input": str(corpus / "images"), "out": str(tmp_path / "f.safetensors"), "model": "camlake_demo"}
        run(ForegroundConfig.resolve({**values, **options}), screen)
        return screen.out.file.getvalue(), foreground_of((tmp_path / "f.safetensors").read_bytes(), "f")

    def test_the_command_without_truth(self, corpus, tmp_path, monkeypatch):
        monkeypatch.setattr("pipeline.arrays.figure_ground.LEAST_COSINE", 0.0)
        said, made = self.command(corpus, tmp_path)
        assert "not known: whether it gains" in said
        assert made.card.combination == "sumprod"
        assert 0 < made.card.threshold < 1
        assert self.command(corpus, tmp_path)[1].digest == made.digest, "the same images give the same file"

    def test_the_command_with_truth(self, corpus, tmp_path, monkeypatch):
        monkeypatch.setattr("pipeline.arrays.figure_ground.LEAST_COSINE", 0.0)
        monkeypatch.setattr(foreground_learning, "LEAST_PAIRS", 5)
        said, made = self.command(corpus, tmp_path, truth=str(corpus / "truth.csv"), combination="product")
        for figure in ("GT-known at one threshold", "MaxBoxAcc", "MaxBoxAccV2", "mean IoU", "against a centre prior"):
            assert figure in said
        assert made.card.combination == "product"
        assert made.card.right_share == pytest.approx(made.card.facts["GT-known at one threshold"]["fused"], abs=1e-3)

    def test_an_unstable_direction_is_refused_with_its_reason(self, corpus, tmp_path, monkeypatch):
        monkeypatch.setattr("pipeline.arrays.figure_ground.LEAST_COSINE", 1.1)
        with pytest.raises(ModelError, match=r"is not stable: two halves of the images give directions"):
            self.command(corpus, tmp_path)


def test_evaluate_shows_both_side_by_side(fused, corpus, tmp_path, capsys):
    run_evaluate(
        EvaluateConfig.resolve({"out": str(fused), "truth": str(corpus / "truth.csv"), "report": str(tmp_path)}),
        Screen(),
    )
    said = capsys.readouterr().err
    assert "figure/ground: GT-known at 0.44 of the scaled map is" in said
    assert "best thresholds here:" in said


def test_installed_directions_are_found_by_the_weights_values():
    model = load_model(AnnotateConfig(input="x", out="y", model="camlake_demo"))
    found = shipped_foreground(model.network, model.weights.state)
    assert found.card.network == "camlake_demo"
    assert found.card.tensor == stride16_name(model.network)
    network = dataclasses.make_dataclass("Network", ["name"])("mobilenet_v2")
    assert shipped_foreground(network, model.weights.state) is None, "other weights"
