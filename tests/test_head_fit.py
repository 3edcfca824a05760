"""Heads: figures by hand, fits that find what is there, labels of every kind of file, and one-line refusals."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from jobs.head import run as head_job
from jobs.terminal.console import Screen
from pipeline.arrays.ranking import average_precision, best_threshold, ranking_figures, roc_auc
from pipeline.models.weights.head_file import head_of, probabilities
from pipeline.outputs.heads import features as features_module
from pipeline.outputs.heads import fitting
from pipeline.outputs.heads.fitting import Standardized, fit_class
from pipeline.storage.truth.image_labels import read_image_labels
from schemas.errors import ModelError, UsageError
from schemas.options.config import StorageConfig
from schemas.options.head import HeadConfig
from tests.fake_lake import FakeLake, image_id
from tests.feature_lake import OBJECTS, feature_lake

ONCE = np.ones((1, 5))


class TestFigures:
    def test_by_hand(self):
        scores, positive = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([True, True, False, False, True])
        # Pairs: .9 over both negatives 2, .8 ties and wins 1.5, .1 none: 3.5 of 6.
        assert roc_auc(scores, positive, ONCE).tolist() == pytest.approx([3.5 / 6])
        assert average_precision(scores, positive, ONCE).tolist() == pytest.approx([(1 + 2 / 3 + 3 / 5) / 3])
        # F0.5 at .9: 1.25 / (1 + .75) = .714; at .8: 2.5 / 3.75 = .667; at .1: 3.75 / 5.75 = .652.
        assert best_threshold(scores, positive) == 0.9

    def test_drawn_rows_count_as_often_as_they_are_drawn(self):
        rng = np.random.default_rng(0)
        scores, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
        times = rng.integers(0, 3, (3, 40)).astype(float)
        for row, auc, ap in zip(
            times, roc_auc(scores, positive, times), average_precision(scores, positive, times), strict=True
        ):
            assert auc == pytest.approx(roc_auc_score(positive, scores, sample_weight=row))
            assert ap == pytest.approx(average_precision_score(positive, scores, sample_weight=row))

    def test_intervals_hold_the_value_and_undefined_figures_are_nan(self):
        rng = np.random.default_rng(1)
        positive = np.arange(200) % 4 == 0
        scores = rng.normal(size=200) + positive
        found = ranking_figures(scores, positive, scores > 0.5)
        for figure in found.values():
            assert figure.low < figure.value < figure.high
        assert np.isnan(ranking_figures(scores, positive, np.zeros(200, bool))["precision"].value)


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_a_fit_is_one_linear_layer_on_raw_features(kind):
    rng = np.random.default_rng(2)
    features = (rng.normal(size=(400, 6)) * [1, 5, 0.1, 1, 1, 0] + [0, 100, 3, 0, 0, 7]).astype(np.float32)
    positive = features[:, 1] + 50 * features[:, 2] > 252
    found = fit_class(Standardized(features.copy()), positive, kind)
    logits = features @ found.weight + found.bias
    assert found.weight[5] == 0, "a column with one value says nothing"
    assert roc_auc(logits, positive, np.ones((1, 400)))[0] > 0.99
    assert found.figures["auc"].value > 0.98
    probs = probabilities(logits.astype(np.float32))
    assert ((probs >= found.threshold) == positive).mean() > 0.95
    assert found.converged


def test_chance_is_reported_as_chance():
    rng = np.random.default_rng(3)
    found = fit_class(Standardized(rng.normal(size=(300, 20)).astype(np.float32)), np.arange(300) % 3 == 0, "logistic")
    assert found.figures["auc"].low < 0.5
    assert found.figures["auc"].high < 0.6


def test_large_sets_are_cross_validated_on_a_sample(monkeypatch):
    monkeypatch.setattr(fitting, "HELD_OUT_ROWS", 60)
    rows = fitting._held_out_rows(np.arange(500) < 10)
    assert (len(rows), (rows < 10).sum()) == (60, 10), "rare positives are all kept"
    rows = fitting._held_out_rows(np.arange(500) < 250)
    assert (len(rows), (rows < 250).sum()) == (60, 30)


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return feature_lake(str(tmp_path_factory.mktemp("lake") / "labels"), images=60)


def written(tmp_path, name, rows):
    """Write label rows in the form that the name asks for."""
    path, frame = tmp_path / name, pd.DataFrame(rows)
    {".csv": lambda: frame.to_csv(path, index=False), ".parquet": lambda: frame.to_parquet(path)}.get(
        path.suffix, lambda: frame.to_json(path, orient="records", lines=True)
    )()
    return str(path)


def job(action, place, **options):
    head_job(HeadConfig.resolve({"action": action, "place": str(place), **options}), Screen())


def head_at(path):
    return head_of(path.read_bytes(), path.name)


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet", "labels.jsonl"])
@pytest.mark.parametrize("column", ["uri", "image_id"])
def test_ten_labels_of_any_file_find_the_object(lake, tmp_path, capsys, name, column):
    named = [f"p/{number}.jpg" for number in range(10)]
    keys = [image_id(one) for one in named] if column == "image_id" else named
    rows = [{column: key, "label": OBJECTS[number % 3]} for number, key in enumerate(keys)]
    job("fit", lake.out, labels=written(tmp_path, name, rows), out=str(tmp_path / "head.safetensors"))
    head = head_at(tmp_path / "head.safetensors")
    assert head.card.classes == tuple(sorted(OBJECTS))
    job("apply", lake.out, head=str(tmp_path / "head.safetensors"), out=str(tmp_path / "probs.parquet"))
    table = pq.read_table(tmp_path / "probs.parquet").to_pandas()
    assert len(table) == 60 * 3
    best = table.sort_values("prob").groupby("uri").last()
    true = [OBJECTS[int(uri[2:-4]) % 3] for uri in best.index]
    assert (best["label"] == true).mean() > 0.95
    assert (table["positive"] == (table["prob"] >= head.threshold[table["class_id"]])).all()
    capsys.readouterr()
    job("show", tmp_path / "head.safetensors")
    out = capsys.readouterr().out
    assert "tiny-12345678" in out
    assert all(name in out for name in OBJECTS)


def test_the_card_tells_where_it_comes_from(lake, tmp_path):
    rows = [{"uri": f"p/{number}.jpg", "label": OBJECTS[number % 3]} for number in range(30)]
    labels = written(tmp_path, "labels.csv", rows)
    job("fit", lake.out, labels=labels, out=str(tmp_path / "head.safetensors"), kind="svm")
    card = head_at(tmp_path / "head.safetensors").card
    assert (card.model, card.kind) == ("tiny-12345678", "svm")
    assert card.labels == read_image_labels(labels, StorageConfig()).digest
    assert (card.facts["rows"], card.facts["classes"]["cup"]["positives"]) == (30, 10)
    value, low, high = card.facts["classes"]["cup"]["auc"]
    assert low <= value <= high
    json.dumps(card.facts, allow_nan=False)
    job("apply", lake.out, head=str(tmp_path / "head.safetensors"), out=str(tmp_path / "probs.csv"))
    assert list(pd.read_csv(tmp_path / "probs.csv").columns) == [
        *("image_id", "uri", "class_id", "label", "prob", "positive")
    ]


def test_positives_alone_take_other_images_as_negatives(lake, tmp_path, capsys):
    rows = [{"uri": f"p/{number}.jpg", "label": "cup"} for number in range(0, 30, 3)] + [
        {"uri": "x.jpg", "label": "cup"}
    ]
    job("fit", lake.out, labels=written(tmp_path, "l.csv", rows), out=str(tmp_path / "head.safetensors"))
    said = capsys.readouterr().err
    assert "1 images of the labels are not in" in said
    assert "the one class: 50 unlabelled images count as those without it" in said
    facts = head_at(tmp_path / "head.safetensors").card.facts
    assert (facts["unlabelled_as_negatives"], facts["classes"]["cup"]["negatives"]) == (50, 50)


def test_several_labels_none_and_rare_classes(lake, tmp_path, capsys):
    rows = [{"uri": f"p/{number}.jpg", "label": f"{OBJECTS[number % 3]};thing"} for number in range(12)]
    rows += [{"uri": f"p/{number}.jpg", "label": ""} for number in range(12, 16)] + [{"uri": "p/0.jpg", "label": "odd"}]
    job("fit", lake.out, labels=written(tmp_path, "l.csv", rows), out=str(tmp_path / "head.safetensors"))
    card = head_at(tmp_path / "head.safetensors").card
    assert card.classes == ("cup", "key", "leaf", "thing")
    assert card.facts["classes"]["thing"]["negatives"] == 4
    assert card.facts["classes_left_out"] == ["odd"]
    assert "1 classes left out, like 'odd' with 1 of 16 images" in capsys.readouterr().err


def test_above_the_limit_a_sample_is_taken_and_said(lake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(features_module, "MOST_ROWS", 40)
    monkeypatch.setattr(features_module, "BATCH_ROWS", 7)
    rows = [{"uri": f"p/{number}.jpg", "label": OBJECTS[number % 3]} for number in range(60)]
    job("fit", lake.out, labels=written(tmp_path, "l.csv", rows), out=str(tmp_path / "head.safetensors"))
    assert "20 labelled images left out" in capsys.readouterr().err
    assert head_at(tmp_path / "head.safetensors").card.facts["rows"] == 40


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"action": "fit"}, "^camlake head fit: needs --labels and --out$"),
            ({"action": "apply", "out": "x.csv"}, "^camlake head apply: needs --head$"),
            ({"action": "show", "labels": "x.csv"}, "^--labels: not an option of camlake head show$"),
            ({"action": "fit", "labels": "x.csv", "out": "x.pt"}, "^--out x.pt: allowed: a .safetensors file$"),
            ({"action": "bake"}, "^ACTION 'bake': "),
        ],
    )
    def test_options(self, options, said):
        with pytest.raises(UsageError, match=said):
            HeadConfig.resolve({"place": "out", **options})

    def test_labels(self, lake, tmp_path):
        for name, rows, said in [
            ("l.csv", [{"uri": "q.jpg", "label": "cup"}], r"^--labels: none of its 1 images, like 'q.jpg', is in "),
            ("l.csv", [{"uri": "p/1.jpg", "label": ""}], "has no label$"),
            ("l.csv", [{"uri": "p/1.jpg", "name": "cup"}], "no column label or class_name"),
            ("l.txt", [{"uri": "p/1.jpg", "label": "cup"}], "allowed: .csv"),
            (
                "l.csv",
                [{"uri": "p/1.jpg", "label": "a"}, {"uri": "p/2.jpg", "label": "b"}],
                "^--labels: 'a' with 1 of 2 images; a class needs 2 images that have it",
            ),
        ]:
            with pytest.raises(UsageError, match=said):
                job("fit", lake.out, labels=written(tmp_path, name, rows), out=str(tmp_path / "head.safetensors"))

    def test_outputs_without_features_and_other_backbones(self, lake, tmp_path):
        plain = FakeLake(str(tmp_path / "plain"))
        plain.run({"a": "v1"})
        rows = [{"uri": f"p/{number}.jpg", "label": OBJECTS[number % 3]} for number in range(12)]
        labels = written(tmp_path, "l.csv", rows)
        other = feature_lake(str(tmp_path / "other"), images=6, digest="other")
        job("fit", lake.out, labels=labels, out=str(tmp_path / "head.safetensors"))
        said = "^--head .*: was fitted on features of tiny-12345678, and .* has those of tiny-12345678; fit one on"
        with pytest.raises(UsageError, match=said):
            job("apply", other.out, head=str(tmp_path / "head.safetensors"), out=str(tmp_path / "p.csv"))
        with pytest.raises(UsageError, match=r"^--model 'nothing': "):
            job("fit", lake.out, labels=labels, out=str(tmp_path / "head.safetensors"), model="nothing")

    def test_other_files(self, lake, tmp_path):
        rows = [{"uri": f"p/{number}.jpg", "label": OBJECTS[number % 3]} for number in range(12)]
        job("fit", lake.out, labels=written(tmp_path, "l.csv", rows), out=str(tmp_path / "head.safetensors"))
        content = (tmp_path / "head.safetensors").read_bytes()
        for broken in (b"", content[:-4], content.replace(b"camlake.head", b"camlake.hand")):
            with pytest.raises(ModelError, match=r"no whole file of `camlake head fit`$"):
                head_of(broken, "head")
