"""``camlake view``: real requests to the running server, hostile ones too, and the page in a browser."""

import http.client
import io
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from PIL import Image

from jobs.terminal.console import Screen
from jobs.view import run
from pipeline.outputs import reader as camlake
from pipeline.outputs.page.live import LiveCatalog
from pipeline.outputs.page.server import ViewServer
from schemas.errors import StoreError, UsageError
from schemas.options.reading import ViewConfig
from tests.chromium import chromium
from tests.fake_lake import FakeLake, image_id
from tests.serving import serving

HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(1)</script>'; DROP TABLE images; --"


class _Client:
    """Asks one server."""

    def __init__(self, server: ViewServer) -> None:
        self.url = urlsplit(server.url)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer to a request below the token."""
        return self.raw(self.url.path + path, method, headers)

    def raw(self, target: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
        connection = http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=60)
        try:
            connection.putrequest(method, target, skip_host="Host" in (headers or {}))
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def json(self, path: str, **fields: Any) -> Any:
        status, _, body = self.ask(f"{path}?{urlencode(fields)}")
        assert status == 200, body
        return json.loads(body)

    def refused(self, path: str, **fields: Any) -> str:
        """Return why a request is refused."""
        status, _, body = self.ask(f"{path}?{urlencode(fields)}" if fields else path)
        assert status == 400, body
        return body.decode()


@pytest.fixture(scope="module")
def server(rendered: Path) -> Iterator[ViewServer]:
    with ViewServer(LiveCatalog(ViewConfig(out=str(rendered))), "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def client(server: ViewServer) -> _Client:
    return _Client(server)


@pytest.fixture(scope="module")
def rows(rendered: Path) -> dict[str, Any]:
    with camlake.open(str(rendered)) as lake:
        return {table: lake.arrow(table).to_pylist() for table in ("images", "boxes", "features")}


def test_the_page_and_its_policy(client: _Client) -> None:
    status, headers, body = client.ask("")
    _, others, _ = client.ask("")
    assert status == 200
    assert b'"live": true' in body
    assert b'id="images"' not in body
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src 'self' data:; connect-src 'self'")
    assert policy != others["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert client.ask("", "HEAD")[2] == b""


def test_every_image_is_found_by_class_score_and_uri(client: _Client, rows: dict[str, Any]) -> None:
    found = client.json("api/images", count=200)
    assert found["total"] == len(found["images"]) == len(rows["images"]) == 14
    assert [one["id"] for one in found["images"]] == sorted(row["image_id"] for row in rows["images"])
    label = rows["boxes"][0]["label"]
    of_label = {row["image_id"] for row in rows["boxes"] if row["label"] == label}
    assert {one["id"] for one in client.json("api/images", label=label)["images"]} == of_label
    by_score = client.json("api/images", order="score-down")["images"]
    scores = [one["score"] for one in by_score]
    assert scores == sorted(scores, reverse=True)
    middle = (scores[6] + scores[7]) / 2
    assert client.json("api/images", least=middle)["total"] == sum(score >= middle for score in scores)
    assert client.json("api/images", most=middle)["total"] == sum(score <= middle for score in scores)
    name = rows["images"][0]["uri"].rsplit("/", 1)[-1]
    assert [one["name"] for one in client.json("api/images", text=name.upper())["images"]] == [name]
    pages = [client.json("api/images", order="uri", offset=at, count=5)["images"] for at in (0, 5, 10, 15)]
    assert [len(page) for page in pages] == [5, 5, 4, 0]
    assert [one["uri"] for page in pages for one in page] == sorted(row["uri"] for row in rows["images"])


def test_hostile_searches_find_nothing_and_change_nothing(client: _Client) -> None:
    for fields in ({"text": HOSTILE}, {"label": HOSTILE}, {"text": "%"}, {"text": "\x00"}, {"label": "' OR 1=1"}):
        assert client.json("api/images", **fields)["total"] == 0
    assert client.json("api/images")["total"] == 14
    assert "allowed: sample" in client.refused("api/images", order="uri; DROP TABLE images")
    assert client.refused("api/images", least="nan").startswith("least: allowed: 0 to 1")
    assert "0 to 200" in client.refused("api/images", count=201)
    assert "offset" in client.refused("api/images", offset=-1)
    assert "allowed, each once" in client.refused("api/images", where="1=1")
    assert "allowed, each once" in client.refused("api/images?text=a&text=b")
    assert "can't be read" in client.refused("api/images?text=%ff")
    assert "can't be read" in client.refused("api/images?" + "&".join(f"f{n}=1" for n in range(50)))


def test_pictures_are_webp_in_two_sizes(client: _Client, rows: dict[str, Any]) -> None:
    one = rows["images"][0]["image_id"]
    for size in ("small", "large"):
        status, headers, body = client.ask(f"picture/{one}?size={size}")
        assert (status, headers["Content-Type"]) == (200, "image/webp")
        assert Image.open(io.BytesIO(body)).size == (128, 96)
    status, _, body = client.ask(f"picture/{'0' * 32}")
    assert (status, body) == (404, b"no plan of a run says where it lies\n")
    assert "allowed: small, large" in client.refused(f"picture/{one}?size=huge")


@pytest.mark.parametrize("path", ["../../etc/passwd", "%2e%2e%2fetc%2fpasswd", "/etc/passwd", "A" * 32, "a" * 33, ""])
def test_no_path_leads_out_of_the_output(client: _Client, path: str) -> None:
    assert client.refused(f"picture/{path}") == "an image_id has 32 hexadecimal digits\n"
    assert client.ask(path)[0] in {200, 404}
    assert b"root:" not in client.ask(path)[2]


def test_similar_pictures_have_the_greatest_cosines(client: _Client, rows: dict[str, Any]) -> None:
    features = {row["image_id"]: row["feature"] for row in rows["features"]}
    one = rows["images"][0]["image_id"]

    def cosine(other: str) -> float:
        a, b = features[one], features[other]
        length = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
        return float(sum(x * y for x, y in zip(a, b, strict=True)) / length)

    found = client.json("api/near", id=one)["images"]
    expected = sorted((other for other in features if other != one), key=cosine, reverse=True)[:12]
    assert [image["id"] for image in found] == expected
    assert [image["similarity"] for image in found] == pytest.approx([cosine(other) for other in expected], abs=1e-5)
    assert client.json("api/near", id="0" * 32)["images"] == []
    assert "32 hexadecimal digits" in client.refused("api/near", id="' OR 1=1")


def test_only_who_knows_the_url_gets_an_answer(client: _Client, server: ViewServer) -> None:
    for target in ("/", "/api/images", f"/{server.token[:-1]}/", f"/{server.token.swapcase()}/", "//", "/%00/", "*"):
        assert client.raw(target)[0] == 404, target
    port = client.url.port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        "127.0.0.1:1",
        "",
        "[",
        "a:b",
    ):
        status, _, body = client.ask("", Host=host)
        assert (status, body) == (421, b"this server answers only under the URL that it printed\n"), host
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert client.ask("api/images?count=0", Host=host)[0] == 200, host


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_shows(client: _Client, method: str) -> None:
    status, headers, _ = client.ask("api/images", method, Content_Length="0")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_the_page_follows_the_output(tmp_path: Path) -> None:
    lake = FakeLake(str(tmp_path / "labels"))
    with pytest.raises(StoreError, match="no camlake output here"):
        LiveCatalog(ViewConfig(out=lake.out))
    lake.run({"a": "v1"})
    live = LiveCatalog(ViewConfig(out=lake.out))
    first = live.newest()
    lake.run({"b": "v1", "a": "v2"})
    assert live.current() is first
    assert live.newest() is not first
    assert live.newest() is live.current()
    with ViewServer(live, "127.0.0.1", 0) as server, serving(server):
        client = _Client(server)
        assert [one["uri"] for one in client.json("api/images", order="uri")["images"]] == ["a", "b"]
        assert [len(one["boxes"]) for one in client.json("api/images")["images"]] == [2, 2], "of the last version only"
        status, _, body = client.ask(f"picture/{image_id('a')}")
        assert status == 404
        assert b"\n" in body
        with pytest.raises(UsageError, match=f"--port {server.server_port}: can't listen there .* allowed: an address"):
            ViewServer(live, "127.0.0.1", server.server_port)


class _Impatient(Screen):
    """Asks for the page as soon as its URL is there, leaves a request open, and presses Ctrl-C."""

    def say(self, text: str, **facts: Any) -> None:
        super().say(text, **facts)
        if "Ctrl-C" in text:
            os.kill(os.getpid(), signal.SIGINT)

    def result(self, text: str, **facts: Any) -> None:
        super().result(text, **facts)
        url = urlsplit(facts["url"])
        self.idle = socket.create_connection((url.hostname or "", url.port or 0), timeout=60)
        self.idle.sendall(b"GET ")  # A reader that never ends its request holds nobody up.
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        connection.request("GET", url.path)
        self.status = connection.getresponse().status
        connection.close()


def test_ctrl_c_ends_it_with_one_line(rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, screen = signal.getsignal(signal.SIGINT), _Impatient()
    run(ViewConfig(out=str(rendered)), screen)
    screen.idle.close()
    out, err = capsys.readouterr()
    assert screen.status == 200
    assert re.fullmatch(r"view: http://127\.0\.0\.1:\d+/[\w-]{32}/\n", out)
    assert err.splitlines() == [
        f"reading {rendered}",
        f"shows {rendered} to whoever has this URL; Ctrl-C ends it",
        "view: ended",
    ]
    assert signal.getsignal(signal.SIGINT) == before


def test_a_browser_searches_and_shows_similar_pictures(server: ViewServer, local: FakeLake, tmp_path: Path) -> None:
    cards = "[...document.querySelectorAll('.picture')]"
    with chromium(tmp_path) as browser:
        tab = browser.tab()
        tab.size(390, 800, phone=True)
        tab.open(server.url, "document.documentElement?.dataset.ready === 'yes'")
        tab.value("document.getElementById('grid').scrollIntoView({behavior: 'instant'})")
        tab.until(f"{cards}.length === 14 && {cards}[0].querySelector('img').naturalWidth === 128")
        name = tab.value(f"{cards}[3].querySelector('.name').textContent")
        tab.value(
            f"(() => {{const it = document.getElementById('text'); it.value = '{name}';"
            " it.dispatchEvent(new Event('input', {bubbles: true}))})()"
        )
        tab.until(f"{cards}.length === 1")
        tab.value(f"{cards}[0].click()")
        tab.until("document.querySelectorAll('.near img').length === 12")
        tab.until("document.querySelector('.stage img').naturalWidth === 128")
        assert tab.value("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert tab.errors == []
        assert {urlsplit(one).netloc for one in tab.requests if not one.startswith("data:")} == {
            urlsplit(server.url).netloc
        }
        local.run({HOSTILE: "v1"})
        with ViewServer(LiveCatalog(ViewConfig(out=local.out)), "127.0.0.1", 0) as other, serving(other):
            tab.open(other.url, "document.documentElement?.dataset.ready === 'yes'")
            tab.value("document.getElementById('grid').scrollIntoView({behavior: 'instant'})")
            tab.until("document.querySelector('.frame.lost') !== null")
        assert tab.value("document.querySelector('.picture .name').textContent") == HOSTILE.rsplit("/", 1)[-1]
        assert tab.value(f"{cards}[0].title") == HOSTILE
        assert all("404" in error and "/picture/" in error for error in tab.errors), tab.errors
