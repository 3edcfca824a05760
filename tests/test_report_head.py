"""The head of the report's page: how many images, boxes and rejections there are, and how useful the boxes are."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.outputs.box_summary import summary_lines
from pipeline.outputs.page.run_report import report
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.lease import Lease
from schemas.options.reading import ReportConfig
from schemas.reasons import Reason
from tests.fake_lake import FakeLake, manifest_of, rows_of

RUN = "20261122T060000.000-abcdef"
"""A run id before those of FakeLake."""


class _Head(HTMLParser):
    """Collects the facts and the notes of the page's head."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {"dt": [], "dd": [], "li": []}
        self._tag = ""
        self.feed(page.split("<main>")[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in self.texts:
            self.texts[self._tag].append(data)

    @property
    def facts(self) -> dict[str, str]:
        return dict(zip(self.texts["dt"], self.texts["dd"], strict=True))


def with_column(rows: pa.Table, name: str, values: list[float]) -> pa.Table:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.schema.field(name), pa.array(values, rows.schema.field(name).type))


@pytest.fixture
def lake(tmp_path: Path) -> FakeLake:
    """Return an output of two images with four boxes, of three rejected and four skipped inputs."""
    lake = FakeLake(str(tmp_path / "labels"))
    rejected = {"x": Reason.TRUNCATED, "y": Reason.TRUNCATED, "z": Reason.FETCH_FAILED}
    with Lease.acquire(lake.fs, lake.root, RUN) as lease:
        manifest = manifest_of(RUN, planned=5)
        skipped = {"skipped_files": 4, "skipped_by_kind": {".txt": 3, ".json": 1}}
        manifest = manifest.model_copy(update={"counts": manifest.counts.model_copy(update=skipped)})
        start_run(lake.fs, lake.root, manifest)
        lake.write_plan(RUN, {"a": "v1", "b": "v1", **dict.fromkeys(rejected, "v1")})
        rows = rows_of(RUN, {"a": "v1", "b": "v1"}, rejected)
        boxes = with_column(rows["boxes"], "area_frac", [0.95, 0.2, 0.91, 0.9])
        boxes = with_column(boxes, "class_prob", [0.5, 0.04, 0.5, 0.05])
        rows["boxes"] = with_column(boxes, "box_score", [0.1, 0.2, 0.4, 0.5])
        lake.commit(RUN, lease.generation, "000000", rows)
        finish_run(lake.fs, lake.root, manifest, lease.generation)
    return lake


def head(lake: FakeLake) -> _Head:
    page = Path(report(ReportConfig(out=lake.out, pictures=0))).read_text()
    return _Head(re.sub(r"<style.*</style>", "", page, flags=re.DOTALL))


def test_the_head_has_the_numbers_by_hand(lake: FakeLake) -> None:
    facts = head(lake).facts
    assert (facts["images"], facts["boxes"], facts["rejected"]) == ("2", "4", "3: 2 truncated, 1 fetch_failed")


def test_the_head_says_how_useful_the_boxes_are_and_what_was_skipped(lake: FakeLake) -> None:
    notes = head(lake).texts["li"]
    assert notes == [
        "boxes: 50% cover more than 90% of the picture, 25% are of classes under 5%, median box_score 0.30",
        "advice: many boxes cover nearly the whole picture; `camlake rebox` or a new run may try --box-rule auto,"
        " --foreground, or another network",
        "skipped 4 files as no images: 3 .txt, 1 .json",
    ]


def test_the_head_counts_the_current_rows_of_all_runs(lake: FakeLake) -> None:
    later = lake.run({"a": "v2", "c": "v1", "x": "v1"})
    found = head(lake)
    assert (found.facts["images"], found.facts["boxes"]) == ("4", "8")
    assert found.facts["rejected"] == "2: 1 fetch_failed, 1 truncated"
    # Of eight boxes one covers more than 90 %, of b; the new ones have no box_score. The last run skipped nothing.
    assert found.texts["li"] == [
        "boxes: 12% cover more than 90% of the picture, 0% are of classes under 5%, median box_score 0.45"
    ]
    assert found.texts["li"] != summary_lines(lake.fs, lake.root, later), "which tells the last run's boxes"


def test_a_run_without_boxes_has_no_sentence_about_them(tmp_path: Path) -> None:
    lake = FakeLake(str(tmp_path / "labels"))
    lake.run({}, {"x": Reason.TRUNCATED})
    found = head(lake)
    assert (found.facts["boxes"], found.facts["rejected"], found.texts["li"]) == ("0", "1: 1 truncated", [])
