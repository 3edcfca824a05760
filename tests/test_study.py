"""The study: its statistics and verdicts on made-up numbers, and a tiny run from scenes to page."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from jobs.terminal.console import Screen
from pipeline.images.augment import draw_views, take_views
from schemas.errors import UsageError
from tests.benchmarks.study import __main__ as study
from tests.benchmarks.study import running, scene_sets
from tests.benchmarks.study.claims import CLAIMS, NEARLY, Claim, Comparison, Side, judge
from tests.benchmarks.study.intervals import difference_of, mean_of
from tests.benchmarks.study.learning import input_side, make_network, viewed_boxes
from tests.benchmarks.study.results import Result, claim_folder, is_finished, read_all, result_path
from tests.benchmarks.study.scoring import WayScores, found_by, paper_boxes
from tests.benchmarks.study.study_config import StudyConfig
from tests.benchmarks.study.study_networks import NETWORKS, StudyNetwork, chosen_networks, tasks

TINY = {"scenes": 40, "tests": 20, "size": 48, "cells": 2, "width": 1 / 64, "epochs": 1, "batch_size": 20, "seeds": 1}


def _result(key: str, seed: int, right: list[float], way: str = "cam", extent: float = 1.0) -> Result:
    hits = np.array(right, np.float64)
    found = WayScores(0.2, hits, hits, hits, np.full(len(hits), extent), hits)
    return Result(key, seed, 1.0, 10, 96, (6, 6), (2.0,), 1 - hits, 1 - hits, {way: found})


def test_a_mean_s_interval_is_that_of_a_binomial_share() -> None:
    hits = np.repeat([1.0, 0.0], [300, 700])
    value, low, high = mean_of([hits])
    assert value == 0.3
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert abs(low - (0.3 - half)) < 0.004
    assert abs(high - (0.3 + half)) < 0.004


def test_seeds_that_differ_widen_the_interval() -> None:
    calm = [np.repeat([1.0, 0.0], [250, 250])] * 3
    wild = [np.repeat([1.0, 0.0], [n, 500 - n]) for n in (50, 250, 450)]
    assert mean_of(calm).value == mean_of(wild).value == 0.5
    assert mean_of(wild).high - mean_of(wild).low > 3 * (mean_of(calm).high - mean_of(calm).low)


def test_a_difference_is_paired_by_scene() -> None:
    hits = np.repeat([1.0, 0.0], [250, 250])
    better = hits.copy()
    better[250:260] = 1.0  # right wherever the other is, and on ten scenes more
    difference = difference_of([better], [hits])
    assert difference.value == pytest.approx(0.02)
    assert difference.low > 0.005
    assert difference.high < 0.04
    assert difference_of([hits], [hits]) == (0, 0, 0)
    assert difference_of([hits], [hits], share=0.5).value == 0.25


CLAIM = Claim("one is better", (Comparison(Side("one", "cam"), Side("other", "cam")),))
MANY, SOME, FEW = ([1.0] * n + [0.0] * (100 - n) for n in (90, 52, 10))


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (MANY, FEW, "holds"),
        (FEW, MANY, "does not hold here"),
        (SOME, SOME[::-1], "undecided"),
    ],
)
def test_a_verdict_follows_from_the_numbers(one: list[float], other: list[float], verdict: str) -> None:
    results = {"one": [_result("one", 0, one)], "other": [_result("other", 0, other)]}
    assert judge(CLAIM, results, np.zeros(100)).verdict == verdict


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (MANY, MANY, "holds"),
        (MANY, SOME[::-1], "holds in part"),
        (MANY, FEW, "holds in part"),
        (SOME[::-1], SOME[::-1], "undecided"),
        (SOME[::-1], FEW, "does not hold here"),
        (FEW, FEW, "does not hold here"),
    ],
)
def test_two_comparisons_make_one_verdict(one: list[float], other: list[float], verdict: str) -> None:
    results = {name: [_result(name, 0, hits)] for name, hits in zip("abc", (one, other, SOME), strict=True)}
    pairs = (Comparison(Side("a", "cam"), Side("c", "cam")), Comparison(Side("b", "cam"), Side("c", "cam")))
    assert judge(Claim("both", pairs), results, np.zeros(100)).verdict == verdict


def test_a_claim_whose_networks_are_not_trained_is_not_measured() -> None:
    judged = judge(CLAIM, {"one": [_result("one", 0, MANY)]}, np.zeros(100))
    assert (judged.verdict, judged.missing, judged.differences) == ("not measured", ("other",), ())


def test_nearly_is_the_paper_s_own_ratio_of_right_localizations() -> None:
    assert pytest.approx(62.9 / 73.3) == NEARLY
    claim = Claim("nearly", (Comparison(Side("labels", "cam"), Side("boxes", "regress"), share=NEARLY),))
    results = {
        "labels": [_result("labels", 0, [1.0] * 88 + [0.0] * 12)],
        "boxes": [_result("boxes", 0, [1.0] * 100, "regress")],
    }
    ((_, difference),) = judge(claim, results, np.zeros(100)).differences
    assert difference.value == pytest.approx(0.88 - NEARLY)


def test_extent_and_the_centred_box_are_compared_too() -> None:
    claim = Claim(
        "wider, and better than the middle",
        (Comparison(Side("a", "cam"), Side("b", "cam"), "extent"), Comparison(Side("a", "cam"), None)),
    )
    results = {"a": [_result("a", 0, SOME, extent=1.5)], "b": [_result("b", 0, SOME, extent=0.5)]}
    judged = judge(claim, results, np.array(FEW))
    assert [round(difference.value, 3) for _, difference in judged.differences] == [1.0, 0.42]
    assert judged.verdict == "holds"
    assert "the centred box" in judged.differences[1][0]


def test_every_claim_compares_what_the_study_trains() -> None:
    ways = {entry.key: entry.ways for entry in NETWORKS}
    sides = [side for claim in CLAIMS for one in claim.comparisons for side in (one.more, one.less) if side]
    assert len(CLAIMS) == 4
    assert all(side.way in ways[side.key] for side in sides)
    assert len({entry.key for entry in NETWORKS}) == len(NETWORKS)


def test_all_networks_come_once_before_any_comes_twice() -> None:
    planned = tasks(NETWORKS, 2)
    assert [seed for _, seed in planned] == [0] * len(NETWORKS) + [1] * len(NETWORKS)
    assert [entry for entry, _ in planned[: len(NETWORKS)]] == list(NETWORKS)


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.key)
def test_every_network_s_maps_have_the_cells_that_are_asked_for(entry: StudyNetwork) -> None:
    config = StudyConfig(width=1 / 64)
    side = input_side(config, entry)
    _, network = make_network(config, entry)
    cells = min(network.map_size(side))
    assert side >= config.size
    assert side % 8 == 0
    # The FC form ends in one more pooling than the CAM form, whose side it shares.
    least = round(config.cells * entry.cells)
    assert cells >= least // 2 if entry.key.endswith("_fc") else cells >= least


def test_boxes_follow_their_scene_when_it_is_mirrored() -> None:
    pixels = np.zeros((8, 16, 16, 3), np.uint8)
    boxes = np.tile([2.0, 3.0, 7.0, 12.0], (8, 1))
    pixels[:, 3:12, 2:7] = 255
    views = draw_views("flip", 0, 0, np.arange(8))
    seen = viewed_boxes(boxes / 16, views) * 16
    for image, (x0, y0, x1, y1) in zip(take_views(torch.from_numpy(pixels), views, 16), seen.tolist(), strict=True):
        inside = torch.zeros(16, 16)
        inside[round(y0) : round(y1), round(x0) : round(x1)] = 255
        assert torch.allclose(image[0], inside, atol=1e-2)
    assert 0 < (seen[:, 0] == 2).sum() < 8


def test_the_paper_s_box_in_pixels() -> None:
    maps = np.zeros((2, 6, 6), np.float32)
    maps[0, 1:3, 2:5] = 1.0
    boxes = paper_boxes(maps, 96)
    # Bilinear between cell centres: 20 % is reached 0.3 of a cell outside of the ones.
    assert boxes[0] == pytest.approx(np.array([1.7, 0.7, 5.3, 3.3]) * 16, abs=1e-3)
    assert boxes[1].tolist() == [0, 0, 0, 0]


def test_options_that_can_t_be_meant() -> None:
    with pytest.raises(UsageError, match="--networks 'vgg99': allowed: vgg11_gap"):
        chosen_networks("vgg11_gap,vgg99")
    with pytest.raises(UsageError, match="--batch-size 32: allowed: up to --scenes 30"):
        StudyConfig.resolve({"scenes": 30})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """Return the configuration of a finished tiny study of two networks."""
    folder = tmp_path_factory.mktemp("study") / "here"
    config = StudyConfig(folder=str(folder), networks="googlenet_boxes,alexnet_gap", workers=1, **TINY)
    study.run(config, Screen())
    return config


def test_a_tiny_study_ends_in_a_page_its_numbers_and_a_figure(finished: StudyConfig) -> None:
    folder = Path(finished.folder)
    page = (folder / "study.md").read_text()
    assert "| GoogLeNet from boxes | regress | 1 |" in page
    assert "| AlexNet | cam | 1 |" in page
    assert "**Claim 1: not measured.**" in page
    numbers = json.loads((folder / "study.json").read_text())
    assert [one["key"] for one in numbers["networks"]] == ["googlenet_boxes", "alexnet_gap"]
    assert 0 <= numbers["networks"][1]["ways"]["cam"]["max_box_acc"]["value"] <= 1
    assert str(folder) not in page + json.dumps(numbers)
    with Image.open(folder / "study.png") as figure:
        assert figure.width == 3 * (48 + 3)
    assert not list(folder.rglob("*.part"))


def test_the_numbers_are_those_of_the_trained_weights(finished: StudyConfig) -> None:
    entry = chosen_networks("alexnet_gap")[0]
    ((kept,),) = read_all(Path(finished.folder), (entry,), 1).values()
    again = running.train_one(finished, entry, 0, "cpu")
    assert again.losses == pytest.approx(kept.losses, rel=1e-4)
    assert again.found["cam"].iou == pytest.approx(kept.found["cam"].iou, abs=1e-3)


def test_what_is_finished_is_not_trained_again_and_what_was_killed_is(
    finished: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(finished.folder)
    boxed, plain = chosen_networks(finished.networks)
    planned = tasks((boxed, plain), 1)
    assert running.unfinished(finished, planned) == []
    result_path(folder, plain, 0).unlink()  # killed between its weights and its result
    (folder / "trainings" / "half.part").write_text("{")
    assert running.unfinished(finished, planned) == [(plain, 0)]
    assert scene_sets.load(folder / "scenes", "test").pixels.shape == (20, 48, 48, 3)
    begun = []
    monkeypatch.setattr(study, "run_tasks", lambda config, device, left, *rest: begun.extend(left))
    study.run(finished, Screen())
    assert begun == [(plain, 0)]
    running.train_one(finished, plain, 0, "cpu")
    assert is_finished(folder, plain, 0)


def test_no_training_begins_when_the_minutes_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    config = StudyConfig(workers=2, **TINY)
    planned = tasks(NETWORKS, 1)
    begun: list[str] = []

    def train_one(config: StudyConfig, entry: StudyNetwork, seed: int, device: str) -> Result:
        begun.append(entry.key)
        return _result(entry.key, seed, MANY)

    monkeypatch.setattr(running, "train_one", train_one)
    reported: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        run = partial(running.run_tasks, config, "cpu", planned, pool)
        run(lambda: False, lambda entry, result: reported.append(entry.key))
        assert begun == reported == []
        run(lambda: len(reported) < 3, lambda entry, result: reported.append(entry.key))
    # At the third report one more may be running; it is waited for.
    assert 3 <= len(reported) <= 4
    assert sorted(begun) == sorted(reported) == sorted(entry.key for entry, _ in planned[: len(begun)])


def test_a_study_without_any_result_says_so(finished: StudyConfig) -> None:
    with pytest.raises(UsageError, match="--minutes 45: no training was begun; allowed: more, with the same --folder"):
        study.write(finished, chosen_networks("nin"), Path(finished.folder), Screen())


def test_another_study_s_folder_is_refused(finished: StudyConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a study with --epochs 1; name a new one"):
        claim_folder(finished.model_copy(update={"epochs": 2}))
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is not empty and holds no study"):
        claim_folder(finished.model_copy(update={"folder": str(tmp_path)}))


def test_scenes_depend_on_their_set_and_number_alone() -> None:
    large, small = (StudyConfig(**{**TINY, "scenes": n}) for n in (60, 40))
    assert (scene_sets.scene(large, "train", 7).pixels == scene_sets.scene(small, "train", 7).pixels).all()
    assert (scene_sets.scene(small, "train", 7).pixels != scene_sets.scene(small, "test", 7).pixels).any()
    assert {scene_sets.scene(small, "train", index).label for index in range(10)} == set(range(10))


def test_help_names_every_option() -> None:
    app = typer.Typer()
    app.command()(study.command)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert all("--" + name.replace("_", "-") in shown.output for name in StudyConfig.model_fields)
    assert "python -m tests.benchmarks.study" in shown.output


def test_a_way_is_scored_with_thresholds_of_other_scenes(finished: StudyConfig) -> None:
    folder = Path(finished.folder) / "scenes"
    entry = chosen_networks("alexnet_gap")[0]
    _, network = make_network(finished, entry)
    found = found_by(
        network.eval(), "backprop", scene_sets.load(folder, "choose"), scene_sets.load(folder, "test"), "cpu"
    )
    assert found.threshold is not None
    assert 0 <= found.threshold < 1
    assert found.right.shape == found.extent.shape == (20,)
    assert set(found.right.tolist()) <= {0.0, 1.0}
