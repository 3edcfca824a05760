"""The HTML page in a real browser: it shows its pictures and asks for nothing else."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.pages import picture_view, report_page
from tests.serving import QuietHandler, serving


class _Server(ThreadingHTTPServer):
    """Serves pages by path and remembers every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, bytes] = {}
        self.paths: list[str] = []


class _Handler(QuietHandler):
    server: _Server

    def do_GET(self) -> None:  # noqa: N802 (the base class's name)
        self.server.paths.append(self.path)
        body = self.server.pages.get(self.path, b"")
        self.answer(body, 200 if body else 404, Content_Type="text/html")


@pytest.fixture
def server() -> Iterator[_Server]:
    running = _Server()
    with serving(running):
        yield running


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
    page = report_page(
        title=bait, pictures=[picture_view(), picture_view(uri=bait, label=bait)], rejected=[{bait: bait}], notes=[bait]
    )
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
