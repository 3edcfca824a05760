"""The page in a real browser: it works without a script error, cuts the boxes that rebox cuts, and loads nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.arrays.boxes import foreground_levels, level_boxes
from pipeline.arrays.figure_ground import fuse, min_max
from pipeline.arrays.maps import dequantize, quantize
from pipeline.outputs import reader as camlake
from pipeline.outputs.page.run_report import report
from schemas.options.reading import ReportConfig
from schemas.options.rebox import ReboxConfig
from tests.chromium import Chromium, Tab, chromium
from tests.pages import entry, gallery, report_page, stored_map

READY = "document.documentElement?.dataset.ready === 'yes'"
BAIT = '"><img src=http://leak.test/image onerror="alert(1)"><script src=http://leak.test/script></script>'
CARDS = "[...document.querySelectorAll('.picture')]"
SIDES = ["xmin", "ymin", "xmax", "ymax"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("profile"), "--host-resolver-rules=MAP * ~NOTFOUND") as running:
        yield running


@pytest.fixture(scope="module")
def page(browser: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Tab:
    """Return a page with a hostile picture between two others."""
    file = tmp_path_factory.mktemp("page") / "page.html"
    entries = [
        entry(1, label="mug", score=0.4, area=0.9),
        entry(2, uri=BAIT, label=BAIT, score=0.1, area=0.5),
        entry(3, label="bowl", score=0.8, area=0.1),
    ]
    text = report_page(title=BAIT, gallery=gallery(*entries), rejected=[{BAIT: BAIT}], notes=[BAIT])
    file.write_text(text)
    tab = browser.tab()
    tab.size(1200, 800)
    tab.open(file.as_uri(), READY)
    return tab


def shown(tab: Tab) -> list[str]:
    """Return the labels of the pictures in the grid, in their order."""
    return list(tab.value(f"{CARDS}.map((card) => card.querySelector('b').textContent)"))


def choose(tab: Tab, control: str, value: str) -> None:
    """Set a control as a reader would."""
    change = "['input', 'change'].forEach((name) => it.dispatchEvent(new Event(name, {bubbles: true})))"
    script = f"const it = document.getElementById('{control}'); it.value = {json.dumps(value)}; {change}"
    tab.value(f"(() => {{ {script} }})()")


@pytest.mark.parametrize(("width", "phone"), [(1200, False), (390, True)])
def test_pictures_are_shown_and_nothing_is_loaded(page: Tab, width: int, phone: bool) -> None:
    page.size(width, 800, phone=phone, dark=phone)
    page.until(f"{CARDS}.every((card) => card.querySelector('img').naturalWidth === 100)")
    found = page.value(
        "({overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,"
        " least: Math.min(...[...document.querySelectorAll('.frame img[src]')].map((one) => one.clientWidth)),"
        " strange: document.querySelectorAll('[src*=leak], [onerror]').length})"
    )
    assert found["overflow"] == 0
    assert found["least"] > 60
    assert found["strange"] == 0
    assert BAIT in shown(page)
    assert page.errors == []
    assert [one for one in page.requests if not one.startswith(("file:", "data:"))] == []


def test_pictures_are_filtered_and_sorted(page: Tab) -> None:
    assert shown(page) == ["mug", BAIT, "bowl"]
    for order, labels in {
        "score-down": ["bowl", "mug", BAIT],
        "area-up": ["bowl", BAIT, "mug"],
        "uri": [BAIT, "bowl", "mug"],
        "sample": ["mug", BAIT, "bowl"],
    }.items():
        choose(page, "order", order)
        page.until(f"{CARDS}.length === 3")
        assert shown(page) == labels
    for control, value, labels, before in (
        ("label", "bowl", ["bowl"], ""),
        ("label", BAIT, [BAIT], ""),
        ("least", "0.3", ["mug", "bowl"], "0"),
        ("text", "MUG-00", ["mug"], ""),
        ("text", "no such picture", [], ""),
    ):
        choose(page, control, value)
        page.until(f"{CARDS}.length === {len(labels)}")
        assert shown(page) == labels
        choose(page, control, before)
        page.until(f"{CARDS}.length === 3")


def test_keys_open_a_picture_and_walk_through_its_classes(page: Tab) -> None:
    page.value(f"{CARDS}[0].focus()")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    page.press("Enter")
    page.until("document.getElementById('detail').open")
    title = "document.querySelector('#detail .title').textContent"
    assert page.value(title) == "mug-0001.jpg"
    coordinates = "document.querySelector('#detail .coordinates').textContent"
    assert page.value(coordinates) == "mug: 40.0, 20.0, 90.0, 70.0"
    page.press("2")  # The second class has no stored box and gets one as soon as a threshold is chosen.
    assert page.value(coordinates) == ""
    page.press("]")
    assert page.value(coordinates).startswith("cup: ")
    page.press("s")
    page.press("m")
    assert page.value("camlakeGallery.view.look") == "light"
    page.press("+")
    assert "scale(1.5)" in page.value("document.querySelector('.stage .frame').style.transform")
    page.press("ArrowRight")
    page.until(f"{title} !== 'mug-0001.jpg'")
    assert page.value("document.querySelector('#detail .uri').textContent") == BAIT
    page.press("Escape")
    page.until("!document.getElementById('detail').open")
    page.value("camlakeGallery.setLook('plain')")
    assert page.errors == []


def test_a_request_would_be_heard(browser: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text('<!doctype html><img src="http://leak.test/image"><script>nothing.there</script>')
    tab = browser.tab()
    tab.open(file.as_uri())
    assert "http://leak.test/image" in tab.requests
    assert any("nothing is not defined" in error for error in tab.errors)


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a random map, coarse noise plus fine noise, so that it has one to several components."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 3, 3)))
    bumps = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0, 0].numpy()
    return np.asarray(bumps + rng.normal(size=(height, width)) * rng.choice([0.05, 0.6]), np.float32)


def test_any_map_is_cut_as_the_network_s_maps_are(page: Tab) -> None:
    rng = np.random.default_rng(7)
    size_wh, thresholds = np.array([500, 375]), (0.15, 0.36, 0.7)
    cases, expected = [], []
    for number in range(120):
        heat = smooth(rng, *rng.integers(1, 16, 2))
        figure = smooth(rng, *rng.integers(4, 16, 2)) if number % 2 else None
        combination = ("product", "sum", "sumprod")[number % 3]
        name = "auto" if number % 4 else "paper"
        every = number % 5 == 0
        cells = torch.from_numpy(dequantize(*quantize(heat[None])))
        if figure is not None:
            cells = fuse(cells[None], torch.from_numpy(dequantize(*quantize(figure[None]))), combination)[0]
        cells = min_max(cells) if name == "auto" else cells
        levels = foreground_levels(cells, torch.tensor(thresholds))
        found = level_boxes(cells, levels, components="all" if every else "largest")
        scale = np.tile(size_wh / np.array(cells.shape[:0:-1]), 2)
        boxes = found.boxes_xyxy.numpy() * scale
        expected.append([boxes[found.level_index.numpy() == level].tolist() for level in range(3)])
        rule = {"name": name, "combination": combination, "all": every}
        cases.append([stored_map(heat), None if figure is None else stored_map(figure), rule])
    cut = page.value(
        f"{json.dumps(cases)}.map(([heat, figure, rule]) => {json.dumps(thresholds)}.map((threshold) =>"
        " camlakeBoxes.cut(camlakeBoxes.surface(heat, figure, rule), threshold, 500, 375, rule.all)))"
    )
    assert [[len(boxes) for boxes in one] for one in cut] == [[len(boxes) for boxes in one] for one in expected]
    assert sum(len(boxes) for one in expected for boxes in one) > 300
    for one, other in zip(cut, expected, strict=True):
        for boxes, exact in zip(one, other, strict=True):
            np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), np.reshape(exact, (-1, 4)), atol=0.02)


def test_the_slider_cuts_the_boxes_of_rebox(browser: Chromium, rendered: Path, tmp_path: Path) -> None:
    file = report(ReportConfig(out=str(rendered), page=str(tmp_path / "page.html")))
    tab = browser.tab()
    tab.open(Path(file).as_uri(), READY)
    assert tab.value("camlakeSource.setup.rule.combination") is not None
    assert tab.value("camlakeSource.setup.rule.refusal") == ""
    for threshold in (0.3, 0.6):
        out = tmp_path / f"{threshold}"
        rebox(ReboxConfig.resolve({"labels": str(rendered), "out": str(out), "threshold": threshold}), Screen())
        with camlake.open(str(out)) as lake:
            exact = lake.pandas("boxes", ["image_id", "label", *SIDES])
        cut = tab.value(
            "camlakeSource.find({text: '', label: '', least: 0, most: 1, order: 'sample'}, 0, 500).then(({images}) =>"
            " images.flatMap((entry) => camlakeOverlay.boxesOf(entry, camlakeSource.setup.rule,"
            f" {threshold}, null).map((box) => [entry.id, entry.classes[box.index].label, ...box.xyxy])))"
        )
        boxes = {(one, label): sides for one, label, *sides in cut}
        assert len(boxes) == len(exact) > 12
        for row in exact.itertuples():
            np.testing.assert_allclose(boxes[row.image_id, row.label], row[3:], atol=0.05)
    choose(tab, "threshold", "0.6")
    assert tab.value("document.querySelector('.threshold-value').textContent") == "0.60"
    assert tab.errors == []
