"""The suite label-free: what it chooses and reports, on hand-made hits and on rendered photographs."""

import cv2
import numpy as np
import pytest
import torch

from jobs.benchmark.steady_rate import SilentReporter
from pipeline.arrays.figures import THRESHOLDS, Pairs
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.models.localize.runtime import Runtime
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import UsageError
from tests.benchmarks import label_free
from tests.benchmarks.command import TruthConfig
from tests.benchmarks.label_free import (
    Half,
    HalvedPhotographs,
    Search,
    Setting,
    both_ways,
    figures,
    in_first_half,
    read_photographs,
    true_maps,
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Undo what the suite does to its process: it takes all cores."""
    yield
    torch.set_num_threads(1)


RUNTIME = Runtime("cpu", "fp32", compile=False, threads=1, batch_size=8)
PLAIN, OTHER = Setting(224), Setting(224, tta="flip")


def half_of(first, plain, other):
    """A finished search over photographs of one pair each; plain and other (P, 2) are hits at thresholds .2 and .4."""
    n = len(first)
    pairs = Pairs(n, np.arange(n), np.ones((n, 2)), np.zeros((n, 4)), np.arange(n), "half-open")
    search = Search(HalvedPhotographs([], [], pairs, np.array(first)), None, None, SilentReporter())
    for setting, rows in ((PLAIN, plain), (OTHER, other)):
        search.hits[setting] = np.zeros((n, len(THRESHOLDS)), bool)
        search.hits[setting][:, [10, 20]] = rows
    return Half(search, np.array(first))


class TestByHand:
    FIRST = (True, True, False, False, False, False)
    ROWS = (
        [(1, 0), (0, 0), (1, 1), (0, 1), (0, 1), (0, 1)],
        [(0, 1), (0, 1), (1, 0), (1, 1), (0, 1), (0, 0)],
    )

    def test_thresholds_and_the_setting_are_of_the_first_half_and_the_scores_of_the_other(self):
        half = half_of(self.FIRST, *self.ROWS)
        assert half.best_of([PLAIN, OTHER]) == OTHER
        found = figures(half, OTHER, PLAIN)
        assert found["plain: threshold"] == 0.2
        assert found["chosen: threshold"] == 0.4
        assert found["plain: MaxBoxAcc at that threshold"] == 0.25
        assert found["plain: MaxBoxAcc at the best threshold"] == 1
        assert found["chosen: MaxBoxAcc at that threshold"] == found["chosen: MaxBoxAcc at the best threshold"] == 0.5
        assert found["gain at the thresholds chosen with it"] == 0.25
        low, high = found["its 95 % interval"]
        assert low < 0.25 < high
        assert found["gain at the best thresholds"] == -0.5

    def test_both_ways_every_pair_is_scored_with_what_the_other_half_chose(self):
        half = half_of(self.FIRST, *self.ROWS)
        back = Half(half.search, ~half.chosen_on)
        assert back.best_of([PLAIN, OTHER]) == PLAIN
        found = both_ways((half, back), (OTHER, PLAIN), PLAIN)
        # One more of the four on the second half; on the first one nothing changes.
        assert found["gain both ways"] == pytest.approx(1 / 6)
        assert found[f"tried: {OTHER}"] == {"MaxBoxAcc of all": 4 / 6, "passes": 2.0}

    def test_of_equally_good_settings_the_cheapest_is_chosen(self):
        rows = [(1, 0), (0, 1)]
        assert half_of([True, False], rows, rows).best_of([OTHER, PLAIN]) == PLAIN

    def test_what_costs_too_much_is_not_tried(self):
        dear = Setting(448, method="backprop", tta="tencrop")
        assert dear.passes == 120 > label_free.MOST_PASSES
        assert half_of([True, False], [(1, 0)] * 2, [(0, 0)] * 2).best_of([PLAIN, dear]) == PLAIN


@pytest.mark.parametrize(
    ("setting", "passes"),
    [
        (PLAIN, 1),
        (Setting(448, "gradcam"), 4),
        (Setting(224, "backprop"), 3),
        (Setting(224, "cam", "tencrop"), 10),
        (Setting(224, "cam", "flip", (1.0, 2.0)), 10),
    ],
)
def test_costs_are_in_passes_of_224_pixels(setting, passes):
    assert setting.passes == passes


def test_halves_follow_the_name():
    halves = [in_first_half(f"{number}.jpg") for number in range(400)]
    assert halves == [in_first_half(f"{number}.jpg") for number in range(400)]
    assert 150 < sum(halves) < 250


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 8, seed=1, size_hw=(96, 128), broken=0)
    return folder


def test_maps_are_those_of_the_true_class(corpus):
    weights = load_weights("camlake_demo", "DEFAULT", None)
    photographs = read_photographs(corpus / "images", str(corpus / "truth.csv"), weights.labels)
    assert photographs.files == sorted((corpus / "images").glob("*.jpg"))
    for path, ids in zip(photographs.files, photographs.fitting, strict=True):
        assert [weights.labels[one] for one in ids] == [path.name.rpartition("-")[0]]
    maps = true_maps(Setting(112), photographs, weights, RUNTIME)
    network = load_network("camlake_demo", weights.state, None)
    pictures = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in photographs.files[:2]]
    pixels = torch.from_numpy(np.stack([cv2.resize(each, (112, 112)) for each in pictures]))
    features = network.features(pixels)
    expected = network.head.class_maps(features, torch.tensor(photographs.fitting[:2]))
    np.testing.assert_allclose(maps[:2], expected[:, 0].numpy(), atol=1e-4)


def test_the_suite_measures_what_it_tries(corpus, monkeypatch):
    monkeypatch.setattr(label_free, "RESOLUTIONS", (112, 128))
    monkeypatch.setattr(label_free, "MOST_PASSES", 3.0)
    given = {"images": str(corpus / "images"), "truth": str(corpus / "truth.csv")}
    config = TruthConfig(**given, model="camlake_demo", weights="DEFAULT", precision="fp32")
    found = label_free.measure(config, SilentReporter())
    tried = {name: value for name, value in found.items() if name.startswith("tried: ")}
    assert {"tried: --image-size 112 --method cam --tta none --scales 1", f"tried: {found['chosen setting']}"} <= set(
        tried
    )
    assert any("--method backprop" in name for name in tried)
    assert all(each["passes"] <= 3 for each in tried.values())
    assert found["pairs chosen on"] + found["pairs scored on"] == found["images"] > 4


def test_the_suite_says_what_it_needs():
    with pytest.raises(UsageError, match="label_free needs --images, --truth and --weights"):
        label_free.measure(TruthConfig(), SilentReporter())
