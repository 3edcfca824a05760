"""JPEGs decoded at 1/2, 1/4 or 1/8 of their size: the same picture, of the same recorded size, at the same place."""

import io

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.image_reader import FETCHED
from pipeline.images.decode import DecodeLimits, decode
from pipeline.images.jpeg import scale_for, scaled
from pipeline.images.resize import MARGIN, ResizePlan
from schemas.errors import RejectedImage
from schemas.options.annotate import AnnotateConfig
from schemas.reasons import Reason
from tests.pictures import ORIENTATION, encoded

LIMITS = DecodeLimits(max_pixels=1_000_000, max_bytes=1_000_000, timeout_s=30.0)
PLAN = ResizePlan("squash", 32, (4, 4))


def waves(height: int, width: int) -> np.ndarray:
    """A smooth picture in colours, other in every corner."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 200 / height, x * 200 / width, 100 + 90 * np.sin(x / 9 + y / 7)], -1).astype(np.uint8)


def at_least(side: int) -> object:
    return lambda height, width: (side, side)


@pytest.mark.parametrize(
    ("sides", "least", "scale"),
    [
        ((4000, 3000), (375, 375), 8),
        ((4000, 3000), (376, 376), 4),
        ((4000, 3000), (224, 751), 2),
        ((1785, 1785), (224, 224), 8),  # 223.1, rounded up
        ((500, 375), (224, 224), 1),
        ((10, 10), (224, 224), 1),
    ],
)
def test_both_sides_keep_their_least_length(sides: tuple[int, int], least: tuple[int, int], scale: int) -> None:
    assert scale_for(sides, least) == scale


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_pixels_are_those_of_pillow_at_the_same_scale(scale: int, options: dict[str, object]) -> None:
    data = encoded(waves(123, 205), "JPEG", quality=90, **options)
    image = decode(data, LIMITS, at_least(123 // scale))
    reduced = Image.open(io.BytesIO(data))
    reduced.draft("RGB", (205 // scale, 123 // scale))
    assert image.size_hw == (123, 205)
    assert image.pixels.shape[:2] == scaled((123, 205), scale)
    np.testing.assert_allclose(image.pixels, np.asarray(reduced), atol=2)


def test_gray() -> None:
    data = encoded(waves(64, 64)[..., 0], "JPEG", quality=100)
    image = decode(data, LIMITS, at_least(16))
    assert image.pixels.shape == (16, 16, 3)
    assert (image.pixels == image.pixels[..., :1]).all()
    np.testing.assert_allclose(image.pixels[..., 0], waves(64, 64)[1::4, 1::4, 0], atol=5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_and_scaled(orientation: int) -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    data = encoded(waves(64, 96), "JPEG", quality=95, exif=tags)
    full = decode(data, LIMITS)
    # Of the upright height much is needed, of the width little: which of them counts is known before decoding.
    image = decode(data, LIMITS, lambda height, width: (height // 2, 1))
    assert image.size_hw == full.pixels.shape[:2] == full.size_hw
    assert image.pixels.shape[:2] == scaled(full.size_hw, 2)
    np.testing.assert_allclose(image.pixels, cv2.resize(full.pixels, image.pixels.shape[1::-1]), atol=12)


@settings(max_examples=60)
@given(height=st.integers(65, 300), width=st.integers(65, 300), least=st.integers(9, 64))
@example(height=235, width=247, least=60)
@example(height=186, width=261, least=57)
def test_the_place_of_what_is_seen_moves_by_less_than_a_reduced_pixel(height: int, width: int, least: int) -> None:
    """Levels rise with x (red) and y (green), so an input's level says where in the original it was seen."""
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 240 / width, y * 240 / height, x * 0], -1)
    data = encoded(np.rint(ramp).astype(np.uint8), "JPEG", quality=100, subsampling=0)
    whole, image = decode(data, LIMITS), decode(data, LIMITS, at_least(least))
    scale = scale_for((height, width), (least, least))
    seen, expected = (PLAN.apply(one.pixels, one.size_hw).astype(float) for one in (image, whole))
    px_per_level = np.array([width, height]) / 240
    levels = 3  # of rounding, one in the encoder and one in each decoder
    off_px = np.abs(seen - expected)[..., :2] * px_per_level
    assert (off_px <= scale + levels * px_per_level).all()


def test_limits_and_reasons_are_those_of_the_whole_picture() -> None:
    data = encoded(waves(128, 128), "JPEG")
    for broken, limits, reason in (
        (data, DecodeLimits(128 * 128 - 1, 10**6, 1.0), Reason.TOO_MANY_PIXELS),
        (data, DecodeLimits(10**6, len(data) - 1, 1.0), Reason.TOO_MANY_BYTES),
        (data[:-9], LIMITS, Reason.TRUNCATED),
        (data[:-60] + b"\xff\x22" + data[-58:], LIMITS, Reason.CORRUPT),
    ):
        with pytest.raises(RejectedImage) as caught:
            decode(broken, limits, at_least(1))
        assert caught.value.reason == reason


def test_other_formats_and_colours_are_decoded_whole() -> None:
    png = decode(encoded(waves(64, 64)), LIMITS, at_least(8))
    np.testing.assert_array_equal(png.pixels, waves(64, 64))
    inks = decode(encoded(Image.new("CMYK", (64, 64)), "JPEG"), LIMITS, at_least(8))
    assert inks.pixels.shape == (64, 64, 3)


def test_cells_are_those_of_the_original() -> None:
    """999×2000 covers 3.4965 of 7 rows; at 1/8, rounded up to 125×250, it would cover 3.5, rounded to even: 4."""
    plan = ResizePlan("fit", 56, (7, 7))
    reduced = np.full((125, 250, 3), 255, np.uint8)
    assert plan.valid_hw([[999, 2000], [125, 250]]).tolist() == [[3, 7], [4, 7]]
    square = plan.apply(reduced, (999, 2000))
    assert (square[:24] == 255).all()
    assert (square[24:] == 128).all()


def fetched(*blobs: bytes) -> pa.Table:
    columns = {name: pa.nulls(len(blobs), FETCHED.field(name).type) for name in FETCHED.names}
    columns["image_id"] = pa.array([f"{index:032x}" for index in range(len(blobs))])
    columns |= {"uri": columns["image_id"], "path": columns["image_id"], "data": pa.array(blobs, pa.large_binary())}
    return pa.table([columns[name] for name in FETCHED.names], schema=FETCHED)


def test_the_stage_scales_what_is_much_larger_than_the_input() -> None:
    side = 32
    small, large = waves(60, 63), waves(round(MARGIN * side) * 4, round(MARGIN * side) * 4 + 13)
    table = fetched(*(encoded(picture, "JPEG", quality=95) for picture in (small, large)))
    inputs = {}
    for scaling in ("auto", "off"):
        decoded = DecodeStage(DecodeSpec(LIMITS, PLAN, scaling))(table)
        assert decoded["height_px"].to_pylist() == [60, large.shape[0]]
        assert decoded["width_px"].to_pylist() == [63, large.shape[1]]
        inputs[scaling] = [np.frombuffer(row, np.uint8).reshape(side, side, 3) for row in decoded["pixels"].to_pylist()]
    np.testing.assert_array_equal(inputs["auto"][0], inputs["off"][0])
    data = table["data"][1].as_py()
    reduced = Image.open(io.BytesIO(data))
    reduced.draft("RGB", (large.shape[1] // 4, large.shape[0] // 4))
    for scaling, pixels in (("auto", np.asarray(reduced)), ("off", np.asarray(Image.open(io.BytesIO(data))))):
        np.testing.assert_allclose(inputs[scaling][1], cv2.resize(pixels, (side, side)), atol=3)


def test_scaling_shapes_the_rows() -> None:
    config = AnnotateConfig(input="in", out="out")
    assert config.settings()["jpeg_scaling"] == "auto"
