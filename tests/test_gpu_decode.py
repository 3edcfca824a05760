"""The stage that decodes on a device gives what the CPU's gives; here the device is the CPU, the code is the same."""

import io
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.gpu_decode_stage import GpuDecodeStage
from pipeline.graph.annotate.stream import Annotator
from pipeline.images.decode import DecodeLimits
from pipeline.images.jpeg import read_frame
from pipeline.images.nvjpeg import check_nvjpeg, decode_jpegs, to_inputs
from pipeline.images.pixels import upright
from pipeline.images.resize import ResizePlan
from schemas.errors import ModelError
from schemas.reasons import Reason
from tests.pictures import ORIENTATION, RGB, SMOOTH, encoded
from tests.test_scaled_decode import fetched, waves

LIMITS = DecodeLimits(max_pixels=20_000, max_bytes=100_000, timeout_s=30.0)
CPU = torch.device("cpu")

# torchvision deprecates its decoders in favour of TorchCodec, as of 0.29.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


@settings(max_examples=60)
@given(
    plan=st.builds(
        ResizePlan,
        resize=st.sampled_from(["squash", "fit"]),
        image_size=st.integers(32, 64),
        map_hw=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ),
    pictures=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200), st.integers(1, 8)), min_size=1, max_size=4),
)
def test_inputs_are_those_of_opencv(plan: ResizePlan, pictures: list[tuple[int, int, int]]) -> None:
    generator = np.random.default_rng(len(pictures))
    stored = [generator.integers(0, 256, (height, width, 3), np.uint8) for height, width, _ in pictures]
    turns = [turn for *_, turn in pictures]
    inputs = to_inputs([torch.from_numpy(one.transpose(2, 0, 1).copy()) for one in stored], turns, plan)
    expected = [plan.apply(upright(one, turn)) for one, turn in zip(stored, turns, strict=True)]
    np.testing.assert_allclose(inputs.numpy().astype(int), np.stack(expected), rtol=0, atol=1)


def bad_tables() -> bytes:
    """A JPEG whose markers are whole and whose Huffman table is impossible: only a decoder finds out."""
    data = bytearray(encoded(SMOOTH, "JPEG"))
    table = data.index(b"\xff\xc4") + 5
    data[table : table + 16] = b"\xff" * 16
    return bytes(data)


def test_one_bad_file_does_not_take_its_batch_along() -> None:
    good = [encoded(waves(16, 8 * width), "JPEG") for width in (1, 2, 3)]
    pictures = decode_jpegs([good[0], bad_tables(), *good[1:], bad_tables()], CPU)
    assert [None if one is None else tuple(one.shape) for one in pictures] == [
        (3, 16, 8),
        None,
        (3, 16, 16),
        (3, 16, 24),
        None,
    ]
    assert decode_jpegs([], CPU) == []


def missing(*_: object, **__: object) -> list[torch.Tensor]:
    raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nand a trace")


def black(*_: object, **__: object) -> list[torch.Tensor]:
    return [torch.zeros(3, 16, 16, dtype=torch.uint8)]


@pytest.mark.parametrize(
    ("decoder", "problem"),
    [
        (missing, "nvJPEG fails here: decode_jpegs_cuda: torchvision not compiled with nvJPEG support"),
        (black, "wrongly"),
    ],
)
def test_a_device_whose_decoder_does_not_work_is_refused(
    decoder: Callable[..., list[torch.Tensor]], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_nvjpeg(CPU)
    monkeypatch.setattr("pipeline.images.nvjpeg.decode_jpeg", decoder)
    with pytest.raises(ModelError, match=rf"^--decode gpu: .*{problem}.*; allowed here: auto, local, remote$"):
        GpuDecodeStage(DecodeSpec(LIMITS, ResizePlan("squash", 32, (4, 4))), "cuda")


def test_an_actor_says_so_at_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a failed constructor Ray only says that the actor died.
    monkeypatch.setattr("pipeline.images.nvjpeg.decode_jpeg", missing)
    monkeypatch.setattr("pipeline.annotate.worker.AnnotateStage", lambda spec, state: None)
    monkeypatch.setattr("pipeline.graph.annotate.stream.ray.get", lambda reference: reference)
    compute = SimpleNamespace(decode="gpu", decode_threads=1, runtime=SimpleNamespace(device="cuda"))
    spec = DecodeSpec(LIMITS, ResizePlan("squash", 32, (4, 4)))
    context = SimpleNamespace(get_actor_id=lambda: "a")
    monkeypatch.setattr("pipeline.graph.annotate.stream.ray.get_runtime_context", lambda: context)
    attempts = SimpleNamespace(begin=lambda key: 1, finish=lambda key: None)
    monkeypatch.setattr("pipeline.graph.annotate.stream.ActorAttempts", lambda progress: attempts)
    actor = Annotator(SimpleNamespace(compute=compute, decode=spec, annotate=None), [None], None)
    with pytest.raises(ModelError, match="--decode gpu: nvJPEG fails here"):
        actor(mixture())


def as_jpeg(mode: str = "RGB", **options: object) -> bytes:
    return encoded(Image.fromarray(waves(40, 64)).convert(mode), "JPEG", **options)


@pytest.mark.parametrize(
    ("data", "usual"),
    [
        (as_jpeg(), True),
        (as_jpeg(progressive=True), False),  # nvJPEG would not say whether all its blocks are there
        (as_jpeg("L"), True),
        (as_jpeg(keep_rgb=True), False),
        (as_jpeg("CMYK"), False),
        (as_jpeg().replace(b"\xff\xc0", b"\xff\xc9"), False),  # arithmetic codes
        # Adobe's marker: its last byte says YCbCr, or RGB.
        (as_jpeg()[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1" + as_jpeg()[2:], True),
        (as_jpeg()[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + as_jpeg()[2:], False),
        (as_jpeg("L")[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + as_jpeg("L")[2:], True),
    ],
)
def test_what_the_device_is_given(data: bytes, usual: bool) -> None:
    assert read_frame(data).usual == usual


def turned(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return as_jpeg(quality=95, exif=tags)


def mixture() -> pa.Table:
    """What may come: usual JPEGs, turned ones, others, other formats, broken ones, and rows without bytes."""
    blobs = [
        as_jpeg(quality=95),
        turned(6),
        b"",
        as_jpeg("L", progressive=True),
        as_jpeg(keep_rgb=True),
        as_jpeg("CMYK"),
        encoded(RGB),
        bad_tables(),
        as_jpeg()[:-20],
        encoded(waves(150, 150), "JPEG"),
        b"no image",
        turned(3),
        b"",
    ]
    table = fetched(*blobs)
    reasons = pa.array([None] * 12 + [str(Reason.NOT_FOUND)])
    data = pa.array([*blobs[:-1], None], pa.large_binary())
    for name, column in (("reason_code", reasons), ("detail", reasons), ("data", data)):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


@pytest.mark.parametrize("resize", ["squash", "fit"])
@pytest.mark.parametrize("device_pixels", [1, 10**9])
def test_the_stage_is_the_other_stage(resize: str, device_pixels: int) -> None:
    spec = DecodeSpec(LIMITS, ResizePlan(resize, 48, (6, 6)), "off")
    table, inputs = GpuDecodeStage(spec, "cpu", device_pixels=device_pixels)(mixture())
    expected = DecodeStage(spec)(mixture())
    assert table.drop_columns(["pixels"]).equals(expected.drop_columns(["pixels"]))
    assert table["pixels"].to_pylist() == [b""] * 13
    rejected = {
        2: Reason.EMPTY,
        7: Reason.CORRUPT,
        8: Reason.TRUNCATED,
        9: Reason.TOO_MANY_PIXELS,
        10: Reason.NOT_AN_IMAGE,
        12: Reason.NOT_FOUND,
    }
    assert table["reason_code"].to_pylist() == [rejected.get(row) for row in range(13)]
    seen = [np.frombuffer(row, np.uint8) for row in expected["pixels"].to_pylist() if row]
    assert inputs.shape == (7, 48, 48, 3)
    assert inputs.dtype == torch.uint8
    np.testing.assert_allclose(inputs.reshape(7, -1).numpy().astype(int), np.stack(seen), rtol=0, atol=1)


def test_a_table_without_images() -> None:
    spec = DecodeSpec(LIMITS, ResizePlan("squash", 32, (4, 4)))
    for table in (mixture().slice(0, 0), mixture().slice(7, 4), mixture().slice(12)):
        decoded, inputs = GpuDecodeStage(spec, "cpu")(table)
        assert len(decoded) == len(table)
        assert inputs.shape == (0, 32, 32, 3)


def test_gray_is_the_same_in_three_colours() -> None:
    (picture,) = decode_jpegs([as_jpeg("L")], CPU)
    assert picture is not None
    expected = np.asarray(Image.open(io.BytesIO(as_jpeg("L"))))
    np.testing.assert_allclose(picture.numpy(), np.stack([expected] * 3), atol=2)
