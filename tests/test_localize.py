"""Maps and boxes of a head from stored feature maps: by hand, restarted, reboxed, evaluated, verified, refused."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from jobs.evaluate import run as evaluate
from jobs.head import run as head_job
from jobs.localize import localize
from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline import camlake
from pipeline.annotate.model import load_model
from pipeline.arrays.feature_codec import decode
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.models.weights.head_file import Head, HeadCard, head_bytes, probabilities
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.commit import Committer
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import ModelError, StoreError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.options.head import HeadConfig
from schemas.options.localize import LocalizeConfig
from schemas.options.reading import EvaluateConfig
from schemas.options.rebox import ReboxConfig
from tests.fake_lake import FakeLake, image_id
from tests.feature_lake import BITS, MAP_HW, OBJECTS, add_run, feature_lake, head_by_hand, maps_of, packed, place_of
from tests.jobs_on import run_annotate
from tests.localizing import IMAGES, lake_at, localized, problems


@pytest.fixture
def source(tmp_path):
    return feature_lake(str(tmp_path / "labels"), IMAGES)


def test_maps_scores_and_boxes_by_hand(source, tmp_path):
    path, head = head_by_hand(tmp_path)
    manifest = localized(source, head=path, topk=2)
    assert (manifest.counts.annotated, manifest.counts.rejected) == (IMAGES, 1)
    assert problems(source) == ()
    assert manifest.lineage.head == manifest.settings["head"] == head.digest
    assert manifest.model.startswith("tiny-")
    assert manifest.model != "tiny-12345678"
    with lake_at(source) as new:
        images = {row["uri"]: row for row in new.arrow("images").to_pylist()}
        heatmaps = {(row["image_id"], row["rank"]): row for row in new.arrow("heatmaps").to_pylist()}
        boxes = {(row["uri"], row["rank"]): row for row in new.arrow("boxes").to_pylist()}
        assert new.arrow("quarantine")["uri"].to_pylist() == ["bad.jpg"]
    assert len(heatmaps) == 2 * IMAGES
    for number in range(IMAGES):
        uri, object_ = f"p/{number}.jpg", number % 3
        means = maps_of(number).mean((1, 2))
        codes = packed(torch.from_numpy(maps_of(number)[None]), BITS)
        f = decode(codes, BITS, MAP_HW, means[None])[0]
        logits = head.weight @ means + head.bias
        order = np.argsort(-logits)
        assert (images[uri]["top1_label"], images[uri]["top1_class_id"]) == (OBJECTS[object_], object_)
        assert images[uri]["top1_prob"] == pytest.approx(probabilities(logits)[object_], rel=1e-5)
        for rank in range(2):
            row, class_id = heatmaps[image_id(uri), rank], order[rank]
            assert row["label"] == OBJECTS[class_id]
            true = np.tensordot(head.weight[class_id], f, 1)
            assert np.abs(camlake.heatmap(row) - true).max() <= np.ptp(true) / 510 + 1e-5
            assert true.mean() + head.bias[class_id] == pytest.approx(logits[class_id], rel=1e-4)
            assert boxes[uri, rank]["class_prob"] == pytest.approx(probabilities(logits)[class_id], rel=1e-4)
        row, column = place_of(number)
        box = boxes[uri, 0]
        centre = (box["xmin"] + box["xmax"]) / 2 / 64 * 4, (box["ymin"] + box["ymax"]) / 2 / 48 * 3
        assert centre == (pytest.approx(column + 1, abs=0.3), pytest.approx(row + 0.5, abs=0.3))
        assert box["box_score"] == pytest.approx(0.7 * box["class_prob"])


def test_only_what_is_new_is_localized_and_heads_stand_beside_each_other(source, tmp_path):
    path, _ = head_by_hand(tmp_path)
    first = localized(source, head=path)
    assert localized(source, head=path).counts.planned == 0
    add_run(source, [1, IMAGES])
    counts = localized(source, head=path).counts
    assert (counts.listed, counts.planned, counts.annotated) == (IMAGES + 2, 1, 1)
    other, _ = head_by_hand(tmp_path, classes=("cup",), name="other.safetensors")
    second = localized(source, head=other)
    assert (second.counts.annotated, second.model == first.model) == (IMAGES + 1, False)
    assert problems(source) == ()
    with lake_at(source) as new:
        assert new.models == sorted([first.model, second.model])
        assert set(new.arrow("boxes", model=second.model)["label"].to_pylist()) == {"cup"}


def test_what_a_failed_run_committed_is_done(source, tmp_path, monkeypatch):
    def dies(self, task, *rows):
        if task == "000001":
            raise StoreError("disk full")
        return commit(self, task, *rows)

    commit, (path, _) = Committer.commit, head_by_hand(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Committer, "commit", dies)
        with pytest.raises(StoreError, match="disk full"):
            localized(source, head=path)
    counts = localized(source, head=path).counts
    assert (counts.already_done, counts.planned) == (IMAGES // 2 + 1, IMAGES // 2)
    assert problems(source) == ()


def test_padding_of_fit_is_cut_off_the_maps(tmp_path):
    lake = feature_lake(str(tmp_path / "labels"), 4, resize="fit")
    path, _ = head_by_hand(tmp_path)
    localized(lake, head=path)
    assert problems(lake) == ()
    with lake_at(lake) as new:
        shapes = new.sql("SELECT DISTINCT heat_h, heat_w FROM heatmaps").fetchall()
    assert shapes == [(2, 4)], "48 of 64 pixels are two and a quarter of three rows"


def test_rebox_and_evaluate_work_on_it(source, tmp_path, capsys):
    path, _ = head_by_hand(tmp_path)
    localized(source, head=path)
    new = str(tmp_path / "new")
    counts = rebox(
        ReboxConfig.resolve({"labels": new, "out": str(tmp_path / "again"), "box_rule": "paper", "threshold": 0.5}),
        Screen(),
    ).counts
    assert counts.annotated == IMAGES
    assert problems(source, "again") == ()
    sides = "image_id, rank, xmin, ymin, xmax, ymax"
    with lake_at(source) as old, lake_at(source, "again") as again:
        query = f"SELECT {sides} FROM boxes ORDER BY image_id, rank"
        assert again.sql(query).fetchall() == old.sql(query).fetchall()
    rows = []
    for number in range(IMAGES):
        row, column = place_of(number)
        x, y = column * 16, row * 16
        rows.append((f"p/{number}.jpg", OBJECTS[number % 3], x, y, x + 32, y + 16))
    truth = pd.DataFrame(rows, columns=["file", "label", "xmin", "ymin", "xmax", "ymax"])
    truth.to_csv(tmp_path / "truth.csv", index=False)
    evaluate(EvaluateConfig.resolve({"out": new, "truth": str(tmp_path / "truth.csv")}), Screen())
    out = capsys.readouterr().out
    assert re.search(r"GT-known +│ 0\.50 +│ +1 │", out), out


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"out": "labels"}, r"^--out \S+: allowed: another place than LABELS"),
            ({"model": "resnet50"}, r"^--model 'resnet50': \S+ has tiny-12345678$"),
            ({"box_rule": "heuristic", "threshold": "0.2,0.5", "topk": 2}, "^--topk 2: allowed with --box-rule heuri"),
            ({"threshold": 0.3}, r"^--threshold: the boxes in \S+ were made with 0.5, not 0.3"),
            ({"topk": 2}, r"^--topk: the boxes in \S+ were made with 3, not 2"),
        ],
    )
    def test_options(self, source, tmp_path, options, said):
        path, _ = head_by_hand(tmp_path)
        localized(source, head=path)
        with pytest.raises(UsageError, match=said):
            localized(source, head=path, **options)

    def test_sources_and_heads(self, source, tmp_path):
        path, _ = head_by_hand(tmp_path)
        other, _ = head_by_hand(tmp_path, digest="other", name="other.safetensors")
        with pytest.raises(UsageError, match=r"^--head .*other.safetensors: was fitted on features of tiny-12345678"):
            localized(source, head=other)
        plain = FakeLake(str(tmp_path / "plain" / "labels"))
        plain.run({"a": "v1"})
        with pytest.raises(UsageError, match=r"^LABELS \S+: has no feature_maps; annotate with --outputs"):
            localized(plain, head=path)
        (tmp_path / "no.safetensors").write_bytes(b"no")
        with pytest.raises(ModelError, match=r"is no whole file of `camlake head fit`"):
            localized(source, head=str(tmp_path / "no.safetensors"))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """An output of the demo network with a figure/ground direction, and that direction."""
    folder = tmp_path_factory.mktemp("annotated")
    write_corpus(folder, 12, seed=6, size_hw=(96, 128), broken=1)
    config = AnnotateConfig.resolve({"input": str(folder / "images"), "out": "x", "model": "camlake_demo"})
    model = load_model(config)
    outputs = "boxes,heatmaps,features,feature_maps,foreground"
    run_annotate(folder / "images", folder / "labels", outputs=outputs, box_rule="auto", foreground="auto")
    return folder, model


def test_the_networks_own_head_gives_the_networks_own_rows(annotated, tmp_path):
    folder, model = annotated
    linear = model.network.head.linear
    card = HeadCard(model.partition, model.digest, model.weights.labels, "logistic", "0" * 64)
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    (tmp_path / "own.safetensors").write_bytes(
        head_bytes(Head(card, weight, bias, np.full(len(bias), 0.5, np.float32)))
    )
    options = {"labels": str(folder / "labels"), "out": str(tmp_path / "new"), "topk": 2}
    manifest = localize(LocalizeConfig.resolve({**options, "head": str(tmp_path / "own.safetensors")}), Screen())
    assert verify(*connect(str(tmp_path / "new"), StorageConfig())).problems == ()
    with camlake.open(str(folder / "labels")) as old, camlake.open(str(tmp_path / "new")) as new:
        (run,) = old.runs
        assert manifest.settings["foreground"] == run.settings["foreground"] != "off"
        assert manifest.settings["outputs"] == ["boxes", "heatmaps", "foreground"]
        assert len(new.arrow("foreground")) == 12
        both = new.pandas("boxes").merge(old.pandas("boxes"), on=["image_id", "rank"], suffixes=("", "_old"))
        maps = new.pandas("heatmaps").merge(old.pandas("heatmaps"), on=["image_id", "rank"], suffixes=("", "_old"))
        assert old.arrow("quarantine")["uri"].to_pylist() == new.arrow("quarantine")["uri"].to_pylist()
    assert len(maps) == 24
    assert (maps["label"] == maps["label_old"]).mean() > 0.9, "ranks by sigmoid are those by softmax"
    alike = [
        np.corrcoef(row["heat"], row["heat_old"])[0, 1]
        for _, row in maps[maps["label"] == maps["label_old"]].iterrows()
    ]
    assert np.median(alike) > 0.99
    top = both[(both["rank"] == 0) & (both["label"] == both["label_old"])]
    sides = ["xmin", "ymin", "xmax", "ymax"]
    moved = np.abs(top[sides].to_numpy() - top[[f"{side}_old" for side in sides]].to_numpy()).max(axis=1)
    assert np.median(moved) < 4
    assert (top["method"] == top["method_old"]).all()


@pytest.mark.slow
def test_fit_and_localize_from_end_to_end(annotated, tmp_path):
    folder, _ = annotated
    with camlake.open(str(folder / "labels")) as lake:
        rows = lake.pandas("images", ["uri", "top1_label"]).rename(columns={"top1_label": "label"})
    rows["label"] = np.where(np.arange(len(rows)) % 2 == 0, "even", "odd")
    rows.to_csv(tmp_path / "labels.csv", index=False)
    head = str(tmp_path / "head.safetensors")
    options = {"action": "fit", "place": str(folder / "labels"), "labels": str(tmp_path / "labels.csv"), "out": head}
    head_job(HeadConfig.resolve(options), Screen())
    options = {"labels": str(folder / "labels"), "out": str(tmp_path / "new"), "head": head}
    assert localize(LocalizeConfig.resolve(options), Screen()).counts.annotated == 12
    assert verify(*connect(str(tmp_path / "new"), StorageConfig())).problems == ()
