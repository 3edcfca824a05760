"""The suites' own code: hand-written maps, boxes and tables against camlake's, the peers' maps, the arithmetic."""

import dataclasses
import errno
import importlib
import json
import re

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from jobs import benchmark as jobs_benchmark
from jobs.benchmark.photographs import make_photographs, weights_file
from jobs.benchmark.steady_rate import annotated_s, steady_per_s
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.runtime import Runtime
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import UsageError
from schemas.options.benchmark import BenchmarkConfig, MeasureConfig
from schemas.tables import network_types, written_schemas
from tests.benchmarks import boxes, peers
from tests.benchmarks.peers import ray_pattern
from tests.benchmarks.peers.loops import forward_pass, hand_loop
from tests.benchmarks.peers.setup import BATCH, Setup
from tests.benchmarks.reference import enlarge
from tests.jobs_on import ROOT
from tests.references.network_by_hand import ByHand, boxes_of, load, normalized, opencv_box, read_image

SIZE_HW = (120, 160)
RULE = CamRule(5, BoxRule("paper", (0.2,), 0.0))


@pytest.mark.parametrize("links", [True, False])
def test_photographs_get_further_names_and_stay_as_they_are(tmp_path, monkeypatch, links):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "another file system", str(source), None, str(target))

    if not links:
        monkeypatch.setattr("jobs.benchmark.photographs.os.link", refuse)
    given, folder = tmp_path / "given", tmp_path / "photographs"
    given.mkdir()
    (tmp_path / "c.bin").write_bytes(b"c")
    for name in ("a.jpg", "b.JPEG", "no.txt"):
        (given / name).write_bytes(name[:1].encode())
    (given / "c.jpg").symlink_to("../c.bin")
    for _ in range(2):
        names = make_photographs(MeasureConfig(images=str(given)), folder, 4)
        assert [path.read_bytes() for path in names] == [b"a", b"b", b"c", b"a"]
    make_photographs(MeasureConfig(images=str(folder)), folder / "again", 4)
    assert [path.samefile(given / "a.jpg") for path in names] == [links, False, False, links]
    assert [names[2].is_symlink(), names[2].samefile(tmp_path / "c.bin")] == [False, links]
    assert [(given / name).read_bytes() for name in ("a.jpg", "b.JPEG", "c.jpg")] == [b"a", b"b", b"c"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Undo what the loops do to their process: they take all cores."""
    yield
    torch.set_num_threads(1)
    cv2.setNumThreads(-1)


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    """Three rendered photographs and the trained demo network."""
    folder = tmp_path_factory.mktemp("benchmark")
    make_photographs(MeasureConfig(), folder / "photographs", 3, SIZE_HW)
    return Setup(folder / "photographs", folder / "out", "camlake_demo", "DEFAULT", "fp32")


def localize(network, pixels):
    runtime = Runtime(device="cpu", precision="fp32", compile=False, threads=1, batch_size=BATCH)
    map_hw = network.map_size(network.preprocessing.image_size)
    return Localizer(network, RULE, runtime)(torch.from_numpy(pixels), [SIZE_HW] * len(pixels), [map_hw] * len(pixels))


def heat_of(localized):
    """Return the maps (B, 5, h, w)."""
    heat = localized.maps.heat
    return heat.reshape(-1, RULE.topk, *heat.shape[1:])


def scaled(maps):
    """Return each map in [0, 1], as both libraries of maps give them."""
    shifted = maps - maps.min(axis=(2, 3), keepdims=True)
    return shifted / (shifted.max(axis=(2, 3), keepdims=True) + 1e-7)


@pytest.fixture(scope="module")
def pixels(setup):
    side = load(setup.model, setup.weights)[0].preprocessing.image_size
    return np.stack([read_image(path, side)[0] for path in setup.paths()])


class TestByHand:
    def test_says_what_camlake_says(self, setup, pixels):
        found = setup.network()(normalized(pixels, load_network("camlake_demo", None, None).preprocessing))
        ours = localize(load(setup.model, setup.weights)[0], pixels)
        assert found.class_ids.reshape(-1).tolist() == ours.maps.class_id.tolist()
        assert np.allclose(found.probs.reshape(-1), ours.maps.class_prob, atol=1e-5)
        assert np.allclose(found.pooled, ours.pooled, atol=1e-5)
        assert np.allclose(found.maps, heat_of(ours), atol=1e-4)
        boxes = boxes_of(found.maps, np.array([SIZE_HW] * 3)).reshape(-1, 4)
        with_box = np.isfinite(boxes[:, 0])
        assert np.flatnonzero(with_box).tolist() == ours.boxes.map.tolist()
        # camlake's edges lie where the surface crosses the threshold, OpenCV's at whole pixels; tips of the surface
        # that are thinner than a pixel fall between OpenCV's.
        apart_px = np.abs(boxes[with_box] - ours.boxes.xyxy)
        assert apart_px.max() <= 1.5
        assert apart_px.mean() <= 0.5

    def test_a_convolution_has_its_bias_and_relu_inside_the_maps(self):
        torch.manual_seed(0)
        network = load_network("squeezenet1_1", None, 64)
        pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
        by_hand = ByHand(network, [""] * 1000, "fp32")
        assert np.allclose(by_hand(by_hand.normalized(pixels)).maps, heat_of(localize(network, pixels)), atol=1e-4)

    def test_a_head_with_a_normalization_is_refused(self, tmp_path):
        weights = weights_file(MeasureConfig(model="convnext_tiny"), tmp_path)
        with pytest.raises(UsageError, match="--model convnext_tiny: its head"):
            load("convnext_tiny", weights)

    def test_box_by_hand(self):
        heat = np.zeros((4, 4), np.float32)
        heat[0, 0] = 1
        heat[2:, 2:] = 1
        # Halfway between the centres 15 and 25 the surface is 0.5; a fifth of 1 is crossed at 17.
        assert opencv_box(heat, (40, 40)) == (17, 17, 40, 40)
        assert np.isnan(opencv_box(-heat, (40, 40))).all()


class TestPeers:
    def test_grad_cam_gives_camlakes_maps_upsampled(self, setup, pixels):
        grad_cam = peer("pytorch_grad_cam", "grad_cam")
        network = load(setup.model, setup.weights)[0]
        side = network.preprocessing.image_size
        heat = scaled(heat_of(localize(network, pixels)).clip(min=0))
        upsampled = np.array([[cv2.resize(one, (side, side)) for one in image] for image in heat])
        assert np.allclose(
            grad_cam.maps_of(network)(normalized(pixels, network.preprocessing)), scaled(upsampled), atol=1e-3
        )

    def test_torch_cam_gives_camlakes_maps(self, setup, pixels):
        torch_cam = peer("torchcam", "torch_cam")
        network = load(setup.model, setup.weights)[0]
        maps = torch_cam.maps_of(network)(normalized(pixels, network.preprocessing))
        assert np.allclose(maps, scaled(heat_of(localize(network, pixels))), atol=1e-4)

    def test_daft_finds_what_camlake_finds(self, setup, pixels):
        daft_pattern = peer("daft", "daft_pattern")
        daft_pattern.run(setup)
        rows = pq.read_table(setup.out)
        ours = localize(load(setup.model, setup.weights)[0], pixels)
        assert rows["path"].to_pylist() == setup.paths()
        assert rows["class_ids"].combine_chunks().flatten().to_pylist()[::5] == ours.top1_class_id.tolist()
        assert len(annotated_s(setup.out)) == 3

    def test_ray_pattern_finds_what_camlake_finds(self, setup, pixels):
        transform, annotator = ray_pattern.Transform(setup.model), ray_pattern.RayNetwork(setup)
        images = [cv2.imread(path, cv2.IMREAD_COLOR_RGB) for path in setup.paths()]
        rows = [transform({"path": "", "image": image}) for image in images]
        found = annotator({name: np.stack([row[name] for row in rows]) for name in rows[0]})
        ours = localize(load(setup.model, setup.weights)[0], pixels)
        # torchvision's resizing smooths where OpenCV's does not, so the maps are alike, not the same.
        assert found["class_ids"][:, 0].tolist() == ours.top1_class_id.tolist()
        assert np.corrcoef(found["maps"][:, 0].ravel(), heat_of(ours)[:, 0].ravel())[0, 1] > 0.95

    def test_a_missing_extra_is_one_line(self):
        with pytest.raises(UsageError, match=r"no-such is not installed; pip install 'camlake\[benchmark\]'"):
            peers.require_extra({"no-such": "no_such_module"})


def peer(module, name):
    """Return a peer's own module; skips where the library is not installed."""
    pytest.importorskip(module, reason=f"{module} is missing: pip install -e '.[benchmark]'")
    return importlib.import_module(f"tests.benchmarks.peers.{name}")


def test_the_network_alone_is_timed(setup, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.peers.loops.FORWARD_S", 0.01)
    assert forward_pass(setup, torch.get_num_threads(), 0) > 0


def test_the_loop_writes_the_same_tables(setup):
    setup = dataclasses.replace(setup, out=setup.out / "loop")
    assert hand_loop(setup) > 0
    tables = {
        name: pq.read_table(setup.out / f"{name}.parquet") for name in ("images", "boxes", "heatmaps", "features")
    }
    channels = tables["features"].schema.field("feature").type.list_size
    schemas = written_schemas(tables, network_types(channels, "float32"))
    assert all(table.schema.equals(schemas[name]) for name, table in tables.items())
    assert [len(tables[name]) for name in ("images", "heatmaps", "features")] == [3, 15, 3]
    assert sum(tables["images"]["n_boxes"].to_pylist()) == len(tables["boxes"])
    assert tables["images"]["height_px"].to_pylist() == [SIZE_HW[0]] * 3
    assert len(annotated_s(setup.out)) == 3


class TestSteadyState:
    def test_is_measured_between_the_first_fifth_and_the_last_tenth(self):
        # Two a second from the 20th to the 90th image, whatever came before and after.
        times = [0.0] * 20 + [index / 2 for index in range(71)] + [1e3] * 9
        assert steady_per_s(times) == 2.0

    def test_needs_more_than_a_batch(self):
        with pytest.raises(UsageError, match="too few images"):
            steady_per_s([1.0] * 32)


def run(module, *words):
    """Run a benchmark's command in this process."""
    app = typer.Typer()
    app.command()(module.command)
    return CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb"})


def test_boxes_from_start_to_file(tmp_path, monkeypatch):
    for constant in ("MAPS", "SAMPLE"):
        monkeypatch.setattr(f"tests.benchmarks.boxes.{constant}", 8)
    done = run(boxes, "--repeats", "1", "--result", str(tmp_path / "result.json"))
    assert done.exit_code == 0, done.output
    assert "7×7 ratio" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["suite"], result["config"]["repeats"]) == ("boxes", 1)
    assert {"processor", "cores", "packages", "commit"} <= set(result["machine"])
    ratio = result["figures"]["7×7 ratio"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]


NAMES = ("boxes", "encoding", "end_to_end", "kills", "label_free", "peers", "reference", "scale")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_s_help_names_its_command_and_its_options(name):
    shown = run(importlib.import_module(f"tests.benchmarks.{name}"), "--help")
    assert shown.exit_code == 0
    assert f"python -m tests.benchmarks.{name}" in shown.output
    assert all(f"--{option}" in shown.output for option in MeasureConfig.model_fields)
    assert ("--truth" in shown.output) == (name in {"boxes", "label_free", "reference"})


@pytest.mark.parametrize("name", NAMES)
def test_what_only_the_evidence_measures_is_no_suite_of_the_program(name):
    with pytest.raises(UsageError, match=f"SUITE '{name}': Input should be 'stages', 'memory' or 'gpu'"):
        BenchmarkConfig.resolve({"suite": name})


def test_the_peers_versions_stand_in_the_file():
    assert set(peers.versions()["peers"]) == set(peers.PACKAGES)


def test_photographs_are_enlarged_under_their_names(tmp_path):
    (tmp_path / "small" / "in").mkdir(parents=True)
    (tmp_path / "small" / "truth.csv").write_text("no picture")
    cv2.imwrite(str(tmp_path / "small" / "in" / "grey.JPEG"), np.full((6, 8, 3), 90, np.uint8))
    enlarge(tmp_path / "small", tmp_path / "large")
    path_of_large = tmp_path / "large" / "small" / "in" / "grey.JPEG"
    assert [path for path in (tmp_path / "large").rglob("*") if path.is_file()] == [path_of_large]
    large = cv2.imread(str(path_of_large))
    assert large.shape == (24, 32, 3)
    assert np.all(np.abs(large.astype(int) - 90) <= 1)


def commands_of_readme():
    """Return the command lines of README's table of figures, as words behind ``python -m tests.benchmarks.``."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Measured")[2].partition("\n## ")[0]
    last_cells = [line.rstrip(" |").rpartition(" | ")[2] for line in table.splitlines() if line.startswith("| ")]
    lines = [re.findall(r"`([^`]+)`", cell)[0] for cell in last_cells[1:]]
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("line", commands_of_readme())
def test_readme_s_commands_are_understood(line):
    rest = line.removeprefix("camlake benchmark ")
    words = rest.replace("SQ", "--images P --weights F").replace("MN", "--images P --weights F --model m").split()
    module = jobs_benchmark if line != rest else importlib.import_module(f"tests.benchmarks.{words.pop(0)}")
    if not hasattr(module, "command"):
        module = importlib.import_module(f"{module.__name__}.__main__")
    app = typer.Typer()
    app.command()(module.command)
    assert typer.main.get_command(app).make_context(line, words).params
