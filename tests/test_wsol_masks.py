"""Mask files of wsolevaluation: what they mean, against OpenCV and scikit-learn and by hand; what can't be read."""

import cv2
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from pipeline.arrays.metrics import pixel_average_precision
from pipeline.images.mask_decoding import SIDE, mask_of_file, pixel_counts
from pipeline.storage.truth.masks import read_masks
from pipeline.storage.truth.wsol_masks import MaskFiles, MaskLine, mask_lines
from schemas.errors import InputError, UsageError
from schemas.options.config import StorageConfig

GREYS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 300), st.integers(1, 300)), elements=st.sampled_from([0, 1, 255]))


def png(pixels: np.ndarray) -> bytes:
    """Return an encoded image of (h, w) or (h, w, 3 or 4) uint8."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def as_the_protocol_says(files: list[bytes]) -> np.ndarray:
    """Return the union of masks at 224×224: grey values, nearest neighbour, above one half."""
    greys = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE).astype(np.float32) for data in files]
    sized = [cv2.resize(grey, (224, 224), interpolation=cv2.INTER_NEAREST) for grey in greys]
    return np.stack([grey > 0.5 for grey in sized]).any(axis=0)


@settings(max_examples=25)
@given(st.lists(GREYS, min_size=1, max_size=3), GREYS, hnp.arrays(np.uint8, (5, 7)))
def test_pxap_of_an_image_is_that_of_its_pixels(masks: list[np.ndarray], ignored: np.ndarray, heat: np.ndarray) -> None:
    fs = MemoryFileSystem()
    files, out = [png(mask) for mask in masks], png(ignored)
    fs.pipe({f"/m/{n}.png": data for n, data in enumerate([*files, out])})
    lines = [MaskLine(n, "a", f"{n}.png", f"{len(files)}.png" if n == 0 else "") for n in range(len(files))]
    inside, left_out = MaskFiles(fs, "/m", "localization.txt", {"a": lines}).of("a", "", (50, 70))
    true, nowhere = as_the_protocol_says(files), as_the_protocol_says([out])
    assert np.array_equal(inside, true)
    counted = ~(nowhere & ~true)
    heat[0, :2] = 0, 255
    surface = cv2.resize(heat.astype(np.float32), (224, 224), interpolation=cv2.INTER_LINEAR)
    scores = np.floor((surface + 2**-10).clip(0, 255))
    found = pixel_average_precision(pixel_counts(heat, inside, left_out).astype(np.float64))
    expected = average_precision_score(true[counted], scores[counted]) if true.any() else 0.0
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("value", [1, 127, 255])
def test_every_grey_value_but_black_is_inside(value: int) -> None:
    pixels = np.zeros((2, 2), np.uint8)
    pixels[0, 1] = value
    mask = mask_of_file(png(pixels))
    assert (mask.shape, mask.sum()) == ((SIDE, SIDE), SIDE * SIDE // 4)
    assert mask[0, -1]
    assert np.array_equal(mask_of_file(png(np.repeat(pixels[..., None], 3, axis=2))), mask)


def test_lines_of_masks_and_of_boxes() -> None:
    content = b"v/a.jpg,v/a1.png,v/a_ignore.png\nv/a.jpg,v/a2.png,\n\nv/b.jpg,v/b.png,\r\n"
    assert mask_lines(content, "t") == [
        (1, "v/a.jpg", "v/a1.png", "v/a_ignore.png"),
        (2, "v/a.jpg", "v/a2.png", ""),
        (4, "v/b.jpg", "v/b.png", ""),
    ]
    assert mask_lines(b"v/a.jpg,1,2,3,4\n", "t") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,m.png,\na,m.png\n", "line 2: 'a,m.png'; allowed: image,mask,ignore, or image,x0,y0,x1,y1"),
        (b"a,m.png\n", "line 1: 'a,m.png'; allowed"),
        (b"a,m.png,\na,1,2,3,4\n", "line 2: 'a,1,2,3,4'; allowed"),
        (b"a,,i.png\n", "line 1: 'a,,i.png'; allowed"),
        (b"a,m.png,i.png\nb,m.png,i.png\na,n.png,j.png\n", "line 3: a second ignore mask of 'a'; line 1 has"),
        (b"a,\xff.png,\n", "no UTF-8 text"),
    ],
)
def test_wrong_lines_are_refused_by_number(content: bytes, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        mask_lines(content, "d/localization.txt")
    assert str(refusal.value).startswith(f"truth 'd/localization.txt': {said}")


def test_a_mask_that_is_missing_or_no_image_is_named_with_its_line() -> None:
    MemoryFileSystem().pipe({"/t/localization.txt": b"a,gone.png,\nb,bad.png,\n", "/t/bad.png": b"\x89PNG"})
    masks = read_masks("memory://t", StorageConfig())
    assert masks is not None
    with pytest.raises(InputError, match=r"^truth 'memory://t/localization.txt': line 1: mask gone.png: not found$"):
        masks.of("a", "", (1, 1))
    with pytest.raises(UsageError, match=r"^truth \S+: line 2: mask bad.png: "):
        masks.of("b", "", (1, 1))


def test_a_root_of_masks_that_is_not_there_is_refused_at_once() -> None:
    MemoryFileSystem().pipe({"/t/localization.txt": b"a,a.png,\n", "/m/a.png": png(np.full((2, 2), 9, np.uint8))})
    masks = read_masks("memory://t", StorageConfig(), "memory://m")
    assert masks is not None
    assert masks.of("a", "", (1, 1))[0].all()
    said = (
        r"^--masks memory://n: not there; allowed: the folder that the files of memory://t/localization.txt lie under$"
    )
    with pytest.raises(UsageError, match=said):
        read_masks("memory://t", StorageConfig(), "memory://n")


def test_a_folder_of_masks_without_any_is_refused() -> None:
    MemoryFileSystem().pipe({"/t/localization.txt": b"a,1,2,3,4\n", "/t/truth.csv": b"file\n"})
    for truth in ("memory://t", "memory://t/truth.csv", "memory://t/truth.json"):
        with pytest.raises(UsageError, match=r"^--masks memory://m: allowed: with a --truth folder whose localization"):
            read_masks(truth, StorageConfig(), "memory://m")
        if not truth.endswith("json"):
            assert read_masks(truth, StorageConfig()) is None
