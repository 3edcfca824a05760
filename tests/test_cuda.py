"""What runs on a CUDA device gives what the CPU gives: boxes, inputs, features, maps, steps of a training, nvJPEG."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.gpu_decode_stage import GpuDecodeStage
from pipeline.arrays.boxes import foreground_levels, level_boxes
from pipeline.images.nvjpeg import decode_jpegs, to_inputs
from pipeline.images.resize import ResizePlan
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.engine import Engine
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.runtime import Runtime
from pipeline.models.weights.state_fitting import load_network
from tests.hand_made import RUNTIME, answers, decoded_table, stage_by_hand
from tests.references.opencv_boxes import smooth_maps
from tests.test_gpu_decode import LIMITS, as_jpeg, bad_tables, turned
from tests.test_scaled_decode import fetched, waves
from tests.test_training_math import a_batch, learner_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
    # torchvision deprecates its decoders in favour of TorchCodec, as of 0.29.
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TABLES, ROWS = 32, 96


@pytest.mark.parametrize("components", ["largest", "all"])
def test_boxes(components):
    maps = torch.from_numpy(np.concatenate([smooth_maps(64, 14, 0.5), np.zeros((2, 14, 14), np.float32)]))
    maps[5, 3, 3] = torch.nan
    thresholds = torch.tensor([0.2, 0.5])
    on_cpu, on_cuda = (
        level_boxes(there, foreground_levels(there, thresholds.to(there.device)), components=components)
        for there in (maps, maps.to(CUDA))
    )
    assert all(column.is_cuda for column in on_cuda)
    for expected, found in zip(on_cpu[:3], on_cuda[:3], strict=True):
        assert found.tolist() == expected.tolist()
    torch.testing.assert_close(on_cuda.boxes_xyxy.cpu(), on_cpu.boxes_xyxy, rtol=0, atol=1e-5)


def test_rows_of_two_threads():
    noise = np.random.default_rng(0).integers(0, 256, (TABLES, ROWS, 8, 8, 3), np.uint8)
    tables = [decoded_table([one.tobytes() for one in pictures], [None] * ROWS) for pictures in noise]
    stage = stage_by_hand(runtime=replace(RUNTIME, device="cuda"))
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(stage, tables))
    on_cpu = stage_by_hand()
    for table, rows in zip(tables, together, strict=True):
        close(answers(rows), answers(stage(table)))
        close(answers(rows), answers(on_cpu(table)))


def close(found, expected):
    """Assert that nested rows are the same, numbers but for rounding; a quantized map may be off by a step."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name == "heat":
                np.testing.assert_allclose(found[name], value, rtol=0, atol=1)
            else:
                close(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-4, abs=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    ("options", "most", "mean"),
    [
        ({"subsampling": 0}, 4, 1),
        ({"subsampling": 0, "progressive": True}, 4, 1),
        ({"subsampling": 2}, 24, 2),  # each decoder has its own way to enlarge the colours
    ],
)
def test_nvjpeg_sees_what_opencv_sees(options, most, mean):
    blobs = [as_jpeg(quality=95, **options), as_jpeg("L", quality=95)]
    for blob, picture in zip(blobs, decode_jpegs(blobs, CUDA), strict=True):
        assert picture.is_cuda
        expected = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR_RGB).transpose(2, 0, 1)
        apart = np.abs(picture.cpu().numpy().astype(int) - expected)
        assert apart.max() <= most
        assert apart.mean() <= mean


def test_one_bad_file_does_not_take_its_batch_along():
    pictures = decode_jpegs([as_jpeg(), bad_tables(), as_jpeg("L")], CUDA)
    assert [None if one is None else tuple(one.shape) for one in pictures] == [(3, 40, 64), None, (3, 40, 64)]


def test_the_stage_with_nvjpeg_gives_what_the_cpus_stage_gives():
    spec = DecodeSpec(LIMITS, ResizePlan("fit", 48, (6, 6)), "off")
    blobs = [as_jpeg(quality=95), turned(6), b"", as_jpeg("CMYK"), as_jpeg("L"), as_jpeg()[:-20], bad_tables()]
    tables = [fetched(*blobs[first:], *blobs[:first]) for first in range(len(blobs))] * 4
    stage, on_cpu = GpuDecodeStage(spec, "cuda"), DecodeStage(spec)

    def decode(table):
        rows, inputs = stage(table)
        return rows, inputs.cpu().numpy()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(decode, tables))
    for table, (rows, inputs) in zip(tables, found, strict=True):
        expected = on_cpu(table)
        assert rows.drop_columns(["pixels"]).equals(expected.drop_columns(["pixels"]))
        pixels = np.stack([np.frombuffer(row, np.uint8) for row in expected["pixels"].to_pylist() if row])
        apart = np.abs(inputs.reshape(pixels.shape).astype(int) - pixels)
        assert apart.max() <= 24
        assert apart.mean() <= 2


def test_resized_inputs():
    stored = [
        torch.from_numpy(waves(height, width).transpose(2, 0, 1).copy()) for height, width in ((40, 64), (90, 30))
    ]
    plan = ResizePlan("fit", 48, (6, 6))
    on_cpu, on_cuda = (to_inputs([one.to(there) for one in stored], [1, 6], plan) for there in (CPU, CUDA))
    np.testing.assert_allclose(on_cuda.cpu().numpy().astype(int), on_cpu.numpy(), rtol=0, atol=1)


def test_normalized_inputs_and_features():
    torch.manual_seed(0)
    network = load_network("camlake_demo", None, 32)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8))
    on_cpu, on_cuda = (Engine(network, Runtime(there, "fp32", False, 1, 4)) for there in ("cpu", "cuda"))
    torch.testing.assert_close(on_cuda.inputs(pixels.to(CUDA)).cpu(), on_cpu.inputs(pixels), rtol=1e-6, atol=1e-6)
    with torch.no_grad(), on_cuda.on_stream():
        found = on_cuda(on_cuda.to_device(pixels)).cpu()
        torch.testing.assert_close(found, on_cpu(pixels), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["cam", "gradcam", "layercam", "backprop"])
def test_maps_of_each_method(method):
    torch.manual_seed(0)
    network = load_network("camlake_demo", None, 64)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (80, 64, 64, 3), np.uint8))
    rule = CamRule(3, BoxRule("paper", (0.2,), 0.0))
    on_cpu, on_cuda = (
        Localizer(network, rule, Runtime(there, "fp32", False, 1, 80), method=method)(
            pixels, [(64, 64)] * 80, [(8, 8)] * 80, [range(5)] * 80
        )
        for there in ("cpu", "cuda")
    )
    close(on_cuda.maps.class_id.tolist(), on_cpu.maps.class_id.tolist())
    scale = on_cpu.maps.heat.max()
    np.testing.assert_allclose(on_cuda.maps.heat / scale, on_cpu.maps.heat / scale, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), ("bf16", 0.02), ("fp16", 0.01)])
def test_steps_of_a_training(precision, atol):
    on_cpu, on_cuda = learner_of("camlake_demo"), learner_of("camlake_demo", precision=precision, device="cuda")
    images, targets = a_batch()
    for _ in range(3):
        expected, found = on_cpu.step(images, targets, slots=4), on_cuda.step(images.to(CUDA), targets, slots=4)
        torch.testing.assert_close(found.losses, expected.losses, rtol=0.05, atol=atol)
    for name, value in on_cuda.state()["network"].items():
        torch.testing.assert_close(value, on_cpu.state()["network"][name], rtol=0.05, atol=atol, msg=name)


def test_a_compiled_trunk_gives_what_the_eager_one_gives():
    if not any(shutil.which(os.environ.get(name, name)) for name in ("CC", "cc", "gcc", "clang")):
        pytest.skip("no C compiler: torch.compile has nothing to work with on this machine")
    torch.manual_seed(0)
    network = load_network("camlake_demo", None, 32)
    pixels = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (5, 32, 32, 3), np.uint8))
    eager, compiled = (Engine(network, Runtime("cuda", "fp32", compile, 1, 2)) for compile in (False, True))  # noqa: A001
    compiled.warm_up()

    def features(engine):
        with torch.no_grad(), engine.on_stream():
            return engine(engine.to_device(pixels)).cpu()

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(features, [compiled, compiled]):
            torch.testing.assert_close(found, features(eager), rtol=1e-3, atol=1e-4)
