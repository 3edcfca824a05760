"""The HTML page: hostile names stay text, nothing is loaded, the policy lets only the page's own scripts run."""

import base64
import html
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.outputs.page.page_pictures import webp
from pipeline.outputs.page.report import SCRIPTS
from tests.pages import RULE, entry, gallery, report_page

HOSTILE = '"><img src=http://127.0.0.1:9/x onerror=alert(1)></script><script>alert(2)</script>{{ 7*7 }}'


class _Page(HTMLParser):
    """Collects what a browser would see: tags with their attributes, text, and the content of scripts by their id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: dict[str | None, str] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[self.tags[-1][1].get("id")] = data
        elif self._inside != "style":
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_needs_neither_ray_nor_torch() -> None:
    code = "import sys, pipeline.outputs.page.report; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_says_what_it_was_given() -> None:
    page = _Page(report_page())
    for shown in (
        "A run",
        "12,345",
        "camlake_demo-1a2b3c4d",
        "0.750",
        "34,567",
        "broken.jpg",
        "skipped 3 files as no images: 3 .txt",
        "3: 3 truncated",
        "the 2 most frequent of 40",
        "yes",
        "–",
    ):
        assert shown in page.text, shown
    bars = [attributes["width"] for attributes in page.named("rect") if "x" not in attributes]
    assert bars == ["100.0%", "10.0%", "75.0%", "25.0%"]
    columns = [attributes["height"] for attributes in page.named("rect") if "x" in attributes]
    assert columns == ["33.33", "0.00", "100.00", "0.00", "100.00", "100.00"]


def test_pictures_and_their_maps_stand_in_the_page() -> None:
    page = _Page(report_page())
    assert json.loads(page.scripts["images"]) == [entry(1)]
    assert json.loads(page.scripts["setup"]) == {"rule": RULE, "total": 1, "live": False, "features": False}
    data = base64.b64decode(page.scripts[f"picture-{1:032x}"], validate=True)
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size) == ("WEBP", (100, 80))
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - (30, 60, 90)).max() <= 4


def test_hostile_names_stay_text() -> None:
    hostile = report_page(
        title=HOSTILE,
        counts={HOSTILE: HOSTILE},
        summary={HOSTILE: HOSTILE},
        scores=[{HOSTILE: HOSTILE}],
        gallery=gallery(entry(1, uri=f"s3://bucket/{HOSTILE}\ud800", label=HOSTILE), rule=RULE | {"refusal": HOSTILE}),
        tables={HOSTILE: 1},
        notes=[HOSTILE],
        rejected=[{HOSTILE: HOSTILE, "uri": "\ud800 lone surrogate"}],
        out=HOSTILE + "'",
    )
    page, tame = _Page(hostile), _Page(report_page())
    # Two shares in the scores of the tame page have bars.
    count = {name: len(page.named(name)) for name in ("script", "img", "svg", "a")}
    assert count == {name: len(tame.named(name)) - 2 * (name == "svg") for name in count}
    assert page.text.count(HOSTILE) >= 9
    assert json.loads(page.scripts["images"])[0]["label"] == HOSTILE
    assert "<script>" not in hostile
    assert html.escape(HOSTILE) in hostile.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def test_only_the_page_s_own_scripts_and_styles_may_run() -> None:
    page, other = _Page(report_page()), _Page(report_page())
    (policy,) = (one["content"] or "" for one in page.named("meta") if one.get("http-equiv"))
    (nonce,) = set(re.findall("'nonce-([^']+)'", policy))
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    running = [one for one in page.named("script") if "type" not in one]
    assert [one["nonce"] for one in (*running, *page.named("style"))] == [nonce] * (len(SCRIPTS) + 1)
    assert nonce not in [one.get("nonce") for one in other.named("script")]
    assert not [one for _, one in page.tags if "style" in one or any(name.startswith("on") for name in one)]


def test_queries_name_the_output_and_quote_it() -> None:
    text = _Page(report_page(out="s3://it's mine/lake/")).text
    assert "read_parquet('s3://it''s mine/lake/boxes/**/*.parquet'" in text
    python = re.search(r"pd\.read_parquet\((.+)\)", text)
    assert python is not None
    assert eval(python[1], {}) == "s3://it's mine/lake/boxes"


def test_empty_sections_are_left_out() -> None:
    empty = {"counts": {}, "summary": {}, "tables": {}, "scores": [], "rejected": [], "notes": []}
    page = _Page(report_page(**empty, gallery=None, overview=None, out=None))
    assert not {"li", "h2", "script", "svg", "dl"} & {tag for tag, _ in page.tags}


@pytest.mark.parametrize("most_bytes", [None, 9_000, 1_000])
def test_a_picture_takes_no_more_bytes_than_it_may(most_bytes: int | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    data = webp(noise, 200, most_bytes)
    width, height = Image.open(io.BytesIO(data)).size
    assert width == 200 if most_bytes is None else len(data) <= most_bytes
    assert abs(height - width * 3 / 4) <= 1
    assert webp(noise, 500)[:4] == b"RIFF"
    assert Image.open(io.BytesIO(webp(noise, 500))).size == (400, 300)
