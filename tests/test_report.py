"""The HTML page: hostile names stay text, nothing is loaded, pictures show what the maps and boxes say."""

import base64
import html
import re
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import fsspec
import numpy as np
import pytest

from pipeline.outputs.report import (
    BOX_RGB,
    TRUTH_RGB,
    MapView,
    contact_sheet,
    draw_boxes,
    overlay_heat,
    render_picture,
    write_report,
)
from tests.pages import NO_BOXES, boxes_xyxy, picture_view, report_page

HOSTILE = '"><img src=http://127.0.0.1:9/x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}'


class _Page(HTMLParser):
    """Collects what a browser would see: tags with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def test_level_three_needs_neither_ray_nor_torch() -> None:
    code = "import sys, pipeline.outputs.report; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_heat_is_bilinear_relative_to_its_maximum_and_negative_values_count_as_zero() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    shown = overlay_heat(pixels, np.array([[-9.0, 0.0], [0.0, 5.0]], np.float32))
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_TURBO)[0, :, ::-1].astype(float)
    # Pixel (3, 3) lies beyond the last cell's centre: full height. (3, 2) lies a quarter of a cell from it: 3/4.
    for (y, x), share in {(0, 0): 0.0, (3, 3): 1.0, (3, 2): 0.75}.items():
        expected = table[int(share * 255)] * (0.2 + 0.5 * share)
        np.testing.assert_allclose(shown[y, x], expected, atol=0.51)


@pytest.mark.parametrize("heat", [np.zeros((2, 2)), np.full((2, 2), -1.0), np.array([[np.nan, 1.0]])])
def test_a_map_without_foreground_shows_the_gray_picture(heat: np.ndarray) -> None:
    pixels = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    np.testing.assert_array_equal(
        overlay_heat(pixels, heat), np.full((4, 4, 3), round(0.299 * 200 + 0.587 * 100 + 0.114 * 50))
    )


def test_box_lines_lie_on_the_first_and_last_pixel_inside() -> None:
    canvas = draw_boxes(np.zeros((20, 30, 3), np.uint8), boxes_xyxy((5, 4, 25, 16)), NO_BOXES)
    ys, xs = np.nonzero((canvas == BOX_RGB).all(axis=2))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (5, 4, 24, 15)
    assert (canvas[4, 5:25] == BOX_RGB).all()
    assert (canvas[4:16, 24] == BOX_RGB).all()


def test_true_boxes_are_dashed_and_lie_under_the_others() -> None:
    box = boxes_xyxy((5, 4, 25, 16))
    truth = draw_boxes(np.zeros((20, 30, 3), np.uint8), NO_BOXES, box)
    line = (truth[4, 5:25] == TRUTH_RGB).all(axis=1)
    assert line[0]
    assert 0.3 < line.mean() < 0.8
    both = draw_boxes(np.zeros((20, 30, 3), np.uint8), box, box)
    assert not (both == TRUTH_RGB).all(axis=2).any()


def test_rendering_leaves_the_picture_itself_alone() -> None:
    view = picture_view()
    before = view.pixels.copy()
    shown = render_picture(view)
    assert (shown.shape, shown.dtype) == ((80, 100, 3), np.uint8)
    np.testing.assert_array_equal(view.pixels, before)
    bare = view._replace(maps=[], truth_xyxy=NO_BOXES)
    np.testing.assert_array_equal(render_picture(bare), before)


def test_contact_sheet_holds_every_picture_twice() -> None:
    views = [
        picture_view()._replace(pixels=np.full((60, 80, 3), shade, np.uint8), truth_xyxy=NO_BOXES)
        for shade in (10, 90, 200)
    ]
    sheet = contact_sheet(views, columns=2, width_px=430)
    assert sheet.shape == (10 + 2 * (74 + 26 + 10), 430, 3)  # tiles of 200, halves of 99 × 74
    for index, shade in enumerate((10, 90, 200)):
        y, x = 10 + 37 + (index // 2) * 110, 10 + 49 + (index % 2) * 210
        assert (sheet[y, x] == shade).all()
        assert not (sheet[y, x + 101] == shade).all()
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], columns=2, width_px=430)


def test_the_page_says_what_it_was_given() -> None:
    page = _Page(report_page())
    for shown in (
        "A run",
        "12,345",
        "camlake_demo-1a2b3c4d",
        "0.750",
        "34,567 rows",
        "broken.jpg",
        "skipped 3 files as no images: 3 .txt",
        "truncated",
        "yes",
        "–",
    ):
        assert shown in page.text, shown
    assert "mug 90.0 %" in page.text
    assert "IoU 0.81" in page.text  # 45 × 45 of 50 × 50
    widths = [attributes["style"] for tag, attributes in page.tags if tag == "i"]
    assert widths == ["width: 75.0%", "width: 25.0%"]


def test_pictures_stand_in_the_page_as_jpegs() -> None:
    images = _Page(report_page()).images()
    assert [image["alt"] for image in images] == [
        "mug-0001.jpg: original",
        "mug-0001.jpg: map of mug",
        "mug-0001.jpg: boxes",
        "mug-0001.jpg: map of mug",
    ]
    for image in images:
        source = image["src"] or ""
        data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"), validate=True)
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (80, 100, 3)
    original = base64.b64decode((images[0]["src"] or "").split(",")[1])
    decoded = cv2.imdecode(np.frombuffer(original, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(decoded.astype(int) - (30, 60, 90)).max() <= 3


def test_large_pictures_are_shown_smaller() -> None:
    large = picture_view()._replace(pixels=np.zeros((1000, 2000, 3), np.uint8))
    for image, width in zip(_Page(report_page(pictures=[large])).images(), (480, 480, 480, 240), strict=True):
        data = base64.b64decode((image["src"] or "").split(",")[1])
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (width // 2, width, 3)


def test_hostile_names_stay_text() -> None:
    hostile = report_page(
        title=HOSTILE,
        summary={HOSTILE: HOSTILE},
        scores=[{HOSTILE: HOSTILE}],
        pictures=[picture_view(uri=f"s3://bucket/{HOSTILE}", label=HOSTILE)],
        tables={HOSTILE: 1},
        notes=[HOSTILE],
        rejected=[{HOSTILE: HOSTILE, "uri": "\ud800 lone surrogate"}],
        out=HOSTILE + "'",
    )
    page, tame = _Page(hostile), _Page(report_page())
    assert "script" not in {tag for tag, _ in page.tags}
    assert len(page.images()) == len(tame.images())
    assert {name for _, attributes in page.tags for name in attributes} == {
        name for _, attributes in tame.tags for name in attributes
    }
    assert page.text.count(HOSTILE) >= 9
    assert "<script" not in hostile
    assert html.escape(HOSTILE) in hostile.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def test_queries_name_the_output_and_quote_it() -> None:
    text = _Page(report_page(out="s3://it's mine/lake/")).text
    assert "read_parquet('s3://it''s mine/lake/boxes/**/*.parquet'" in text
    python = re.search(r"pd\.read_parquet\((.+)\)", text)
    assert python is not None
    assert eval(python[1], {}) == "s3://it's mine/lake/boxes"


def test_empty_sections_are_left_out() -> None:
    page = _Page(report_page(summary={}, scores=[], pictures=[], tables={}, rejected=[], notes=[]))
    assert "li" not in {tag for tag, _ in page.tags}
    assert {attributes.get("id") for tag, attributes in page.tags if tag == "h2"} == {"queries"}


def test_a_picture_without_maps_or_with_empty_maps_has_its_card() -> None:
    bare = picture_view()._replace(maps=[], truth_xyxy=NO_BOXES)
    dark = picture_view()._replace(maps=[MapView("mug", 0.5, np.zeros((2, 2), np.float32), NO_BOXES)])
    page = _Page(report_page(pictures=[bare, dark]))
    assert len(page.images()) == 1 + 3
    assert "IoU" not in page.text


def test_any_file_system_takes_the_page() -> None:
    write_report("memory://reports/page.html", "A run", {}, [], [], {}, [])
    with fsspec.open("memory://reports/page.html", "rb") as source:
        assert source.read().startswith(b"<!doctype html>")
