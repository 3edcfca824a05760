"""The HTML page: hostile names stay text, nothing is loaded, pictures show what the maps and boxes say."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest

from pipeline.report import (
    BOX_RGB,
    TRUTH_RGB,
    MapView,
    PictureView,
    contact_sheet,
    draw_boxes,
    overlay_heat,
    render_picture,
    write_report,
)

HOSTILE = '"><img src=http://127.0.0.1:9/x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}'
NO_BOXES = np.empty((0, 4), np.float32)


def _boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def _view(uri: str = "images/mug-0001.jpg", label: str = "mug", n_maps: int = 2) -> PictureView:
    heat = np.array([[0.0, 1.0], [-1.0, 4.0]], np.float32)
    maps = [MapView(label, 0.9 / (rank + 1), heat, _boxes((40, 20, 90, 70))) for rank in range(n_maps)]
    pixels = np.full((80, 100, 3), (30, 60, 90), np.uint8)
    return PictureView(uri, pixels, maps, _boxes((45, 25, 90, 70)))


def _page(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "A run",
        "summary": {"images": 12345, "model": "camlake_demo-1a2b3c4d"},
        "scores": [{"score": "GT-known at 0.2", "camlake": 0.75, "central box": 0.25, "images": 12}],
        "pictures": [_view()],
        "tables": {"images": 12, "boxes": 34567},
        "rejected": [{"uri": "images/broken.jpg", "reason_code": "truncated", "permanent": True, "detail": None}],
    }
    sink = io.BytesIO()
    write_report(sink, **(arguments | changes))
    return sink.getvalue().decode("utf-8")


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
    code = "import sys, pipeline.report; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
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
    canvas = draw_boxes(np.zeros((20, 30, 3), np.uint8), _boxes((5, 4, 25, 16)), NO_BOXES)
    ys, xs = np.nonzero((canvas == BOX_RGB).all(axis=2))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (5, 4, 24, 15)
    assert (canvas[4, 5:25] == BOX_RGB).all()
    assert (canvas[4:16, 24] == BOX_RGB).all()


def test_true_boxes_are_dashed_and_lie_under_the_others() -> None:
    box = _boxes((5, 4, 25, 16))
    truth = draw_boxes(np.zeros((20, 30, 3), np.uint8), NO_BOXES, box)
    line = (truth[4, 5:25] == TRUTH_RGB).all(axis=1)
    assert line[0]
    assert 0.3 < line.mean() < 0.8
    both = draw_boxes(np.zeros((20, 30, 3), np.uint8), box, box)
    assert not (both == TRUTH_RGB).all(axis=2).any()


def test_rendering_leaves_the_picture_itself_alone() -> None:
    view = _view()
    before = view.pixels.copy()
    shown = render_picture(view)
    assert (shown.shape, shown.dtype) == ((80, 100, 3), np.uint8)
    np.testing.assert_array_equal(view.pixels, before)
    bare = view._replace(maps=[], truth_xyxy=NO_BOXES)
    np.testing.assert_array_equal(render_picture(bare), before)


def test_contact_sheet_holds_every_picture_twice() -> None:
    views = [
        _view()._replace(pixels=np.full((60, 80, 3), shade, np.uint8), truth_xyxy=NO_BOXES) for shade in (10, 90, 200)
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
    page = _Page(_page())
    for shown in (
        "A run",
        "12,345",
        "camlake_demo-1a2b3c4d",
        "0.750",
        "34,567 rows",
        "broken.jpg",
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
    images = _Page(_page()).images()
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
    large = _view()._replace(pixels=np.zeros((1000, 2000, 3), np.uint8))
    for image, width in zip(_Page(_page(pictures=[large])).images(), (480, 480, 480, 240), strict=True):
        data = base64.b64decode((image["src"] or "").split(",")[1])
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (width // 2, width, 3)


def test_hostile_names_stay_text() -> None:
    hostile = _page(
        title=HOSTILE,
        summary={HOSTILE: HOSTILE},
        scores=[{HOSTILE: HOSTILE}],
        pictures=[_view(uri=f"s3://bucket/{HOSTILE}", label=HOSTILE)],
        tables={HOSTILE: 1},
        rejected=[{HOSTILE: HOSTILE, "uri": "\ud800 lone surrogate"}],
        out=HOSTILE + "'",
    )
    page, tame = _Page(hostile), _Page(_page())
    assert "script" not in {tag for tag, _ in page.tags}
    assert len(page.images()) == len(tame.images())
    assert {name for _, attributes in page.tags for name in attributes} == {
        name for _, attributes in tame.tags for name in attributes
    }
    assert page.text.count(HOSTILE) >= 8
    assert "<script" not in hostile
    assert html.escape(HOSTILE) in hostile.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def test_queries_name_the_output_and_quote_it() -> None:
    text = _Page(_page(out="s3://it's mine/lake/")).text
    assert "read_parquet('s3://it''s mine/lake/boxes/**/*.parquet'" in text
    python = re.search(r"pd\.read_parquet\((.+)\)", text)
    assert python is not None
    assert eval(python[1], {}) == "s3://it's mine/lake/boxes"


def test_empty_sections_are_left_out() -> None:
    page = _Page(_page(summary={}, scores=[], pictures=[], tables={}, rejected=[]))
    assert {attributes.get("id") for tag, attributes in page.tags if tag == "h2"} == {"queries"}


def test_a_picture_without_maps_or_with_empty_maps_has_its_card() -> None:
    bare = _view()._replace(maps=[], truth_xyxy=NO_BOXES)
    dark = _view()._replace(maps=[MapView("mug", 0.5, np.zeros((2, 2), np.float32), NO_BOXES)])
    page = _Page(_page(pictures=[bare, dark]))
    assert len(page.images()) == 1 + 3
    assert "IoU" not in page.text


def test_any_file_system_takes_the_page() -> None:
    write_report("memory://reports/page.html", "A run", {}, [], [], {}, [])
    with fsspec.open("memory://reports/page.html", "rb") as source:
        assert source.read().startswith(b"<!doctype html>")


class _Server(ThreadingHTTPServer):
    """Serves pages by path and remembers every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, bytes] = {}
        self.paths: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        body = self.server.pages.get(self.path, b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _dom(server: _Server, path: str, profile: Path) -> str:
    """Return the document that Chromium makes of a page; whatever host the page asks for, ``server`` hears it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed: the page is not opened in a real browser")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-dev-shm-usage "
        "--disable-features=NetworkTimeServiceQuerying --dump-dom"
    )
    port = server.server_address[1]
    here = [f"--host-resolver-rules=MAP * 127.0.0.1:{port}", f"--user-data-dir={profile}"]
    command = [program, *flags.split(), *here, f"http://page.test{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


# Opens the page in a frame and writes what it finds there into its own title.
_PROBE = b"""<!doctype html><link rel="icon" href="data:,"><iframe src="/page.html" width="WIDTH" height="900"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, images = [...page.images];
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.drawImage(images[0], 0, 0);
  document.title = JSON.stringify({
    natural: images.map((image) => [image.naturalWidth, image.naturalHeight]),
    pixel: [...canvas.getImageData(50, 40, 1, 1).data],
    narrowest: Math.min(...images.map((image) => image.getBoundingClientRect().width)),
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    alerted: frame.contentWindow.alerted === true,
  });
};
</script>"""


@pytest.mark.parametrize("width", [1200, 380])
def test_a_browser_shows_the_pictures_and_asks_for_nothing_else(server: _Server, width: int, tmp_path: Path) -> None:
    bait = '"><img src=http://leak.test/image onerror="alerted=true"><script src=http://leak.test/script></script>'
    page = _page(title=bait, pictures=[_view(), _view(uri=bait, label=bait)], rejected=[{bait: bait}])
    server.pages = {"/page.html": page.encode(), "/probe": _PROBE.replace(b"WIDTH", str(width).encode())}
    dom = _dom(server, "/probe", tmp_path)
    title = re.search("<title>(.*?)</title>", dom)
    assert title is not None, dom
    found = json.loads(html.unescape(title[1]))
    assert found["natural"] == [[100, 80]] * 8
    np.testing.assert_allclose(found["pixel"], (30, 60, 90, 255), atol=3)
    assert found["narrowest"] > 40
    assert found["overflow"] == 0
    assert not found["alerted"]
    assert sorted(server.paths) == ["/page.html", "/probe"]


def test_the_browser_test_would_hear_a_request(server: _Server, tmp_path: Path) -> None:
    server.pages = {"/bad.html": b'<!doctype html><link rel="icon" href="data:,"><img src="http://leak.test/image">'}
    _dom(server, "/bad.html", tmp_path)
    assert sorted(server.paths) == ["/bad.html", "/image"]
