"""The pictures of a page: how they are chosen, what the page knows of them, and what it says of those it can't read."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.outputs import reader as camlake
from pipeline.outputs.page.page_entries import entries_of
from pipeline.outputs.page.rules import cutting_rule
from pipeline.outputs.page.run_report import report
from pipeline.outputs.page.sample import sample
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.lease import Lease
from schemas.options.config import StorageConfig
from schemas.options.reading import ReportConfig
from tests.fake_lake import MODEL, FakeLake, image_id, manifest_of, rows_of

RUN = "20261122T060000.000-abcdef"


def commit(lake: FakeLake, classes: list[int], scores: list[float], areas: list[float], run: str = RUN) -> list[str]:
    """Commit an image for each class, score and area, with one box, and return their image_ids."""
    uris = [f"{run}/{number}" for number in range(len(classes))]
    rows = rows_of(run, dict.fromkeys(uris, "v1"), boxes=1)
    changed = {
        "images": {"top1_class_id": classes},
        "boxes": {"box_score": scores, "area_frac": areas, "class_id": classes},
        "heatmaps": {"class_id": classes},
    }
    for table, columns in changed.items():
        for name, values in columns.items():
            place = rows[table].schema.get_field_index(name)
            column = pa.array(values, rows[table].schema.field(name).type)
            rows[table] = rows[table].set_column(place, rows[table].schema.field(name), column)
    with Lease.acquire(lake.fs, lake.root, run) as lease:
        manifest = manifest_of(run, planned=len(uris))
        start_run(lake.fs, lake.root, manifest)
        lake.write_plan(run, dict.fromkeys(uris, "v1"))
        lake.commit(run, lease.generation, "000000", rows)
        finish_run(lake.fs, lake.root, manifest, lease.generation)
    return [image_id(uri) for uri in uris]


def chosen(lake: FakeLake, pictures: int) -> list[str]:
    with camlake.open(lake.out) as opened:
        return sample(opened, MODEL, pictures)


def test_classes_take_turns_and_in_a_class_scores_and_sizes(local: FakeLake) -> None:
    classes = [1, 1, 1, 1, 1, 1, 2, 2, 3]
    scores = [0.1, 0.1, 0.1, 0.1, 0.9, 0.1, 0.5, 0.5, 1.0]
    areas = [0.1, 0.1, 0.1, 0.1, 0.1, 1.0, 0.5, 0.5, 0.9]
    ids = commit(local, classes, scores, areas)
    of = dict(zip(ids, zip(classes, scores, areas, strict=True), strict=True))
    assert sorted(of[one][0] for one in chosen(local, 3)) == [1, 2, 3]
    six = chosen(local, 6)
    assert sorted(of[one][0] for one in six) == [1, 1, 1, 2, 2, 3]
    kinds = {of[one] for one in six if of[one][0] == 1}
    assert kinds == {(1, 0.1, 0.1), (1, 0.9, 0.1), (1, 0.1, 1.0)}, "each of the three cells of class 1 has one"
    assert chosen(local, 3) == six[:3]
    assert set(chosen(local, 100)) == set(ids)
    assert chosen(local, 0) == []


def test_the_sample_is_stable_as_images_come(local: FakeLake) -> None:
    commit(local, [1] * 40, [0.5] * 40, [0.5] * 40)
    before = chosen(local, 10)
    assert chosen(local, 10) == before
    commit(local, [1], [0.5], [0.5], run="20261122T070000.000-abcdef")
    assert len(set(before) & set(chosen(local, 10))) >= 9


def test_entries_have_the_rows_of_the_run_that_counts(local: FakeLake) -> None:
    local.run({"a/b.jpg": "v1"})
    local.run({"a/b.jpg": "v2", "c": "v1"})
    with camlake.open(local.out) as lake:
        entries = entries_of(lake.connection(), MODEL, [image_id("c"), "0" * 32, image_id("a/b.jpg")])
    assert [one["uri"] for one in entries] == ["c", "a/b.jpg"]
    one: dict[str, Any] = entries[1]
    heat = {"h": 2, "w": 3, "lo": -1.0, "hi": 1.0, "q": "ADNmmcz/"}
    expected = {
        "id": image_id("a/b.jpg"),
        "name": "b.jpg",
        "width": 64,
        "height": 48,
        "label": "cat",
        "prob": 0.5,
        "score": 0.5,
        "area": 0.25,
        "classes": [
            {"id": 7, "label": "cat", "rank": 0, "prob": 0.5, "heat": heat},
            {"id": 8, "label": "dog", "rank": 1, "prob": 0.5, "heat": heat},
        ],
        "figure": None,
        "boxes": [
            {"class": index, "threshold": 0.2, "score": 0.5, "xyxy": [1.0, 2.0, 33.0, 26.0]} for index in range(2)
        ],
        "truth": [],
        "iou": None,
    }
    assert one == expected | {"uri": "a/b.jpg"}


def test_the_page_says_which_pictures_can_t_be_read(local: FakeLake) -> None:
    local.run({"a": "v1", "b": "v1"})
    page = Path(report(ReportConfig(out=local.out))).read_text()
    assert "2 of 2 pictures can&#39;t be read any more and are shown without, such as" in page
    assert 'id="picture-' not in page


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({}, ""),
        ({"outputs": ["boxes"]}, "the output has no heatmaps"),
        ({"method": "regress"}, "the boxes come from a box head, not from maps"),
        ({"foreground": "abc"}, "the output does not store the figure/ground maps that its boxes were cut with"),
        (
            {"foreground": "abc", "outputs": ["heatmaps", "foreground"]},
            "the figure/ground direction of the maps is lost or changed",
        ),
    ],
)
def test_where_no_box_can_be_cut_anew_the_page_says_why(local: FakeLake, settings: dict, refusal: str) -> None:
    local.run({"a": "v1"})
    run = manifest_of(RUN)
    run = run.model_copy(update={"settings": run.settings | {"box_rule": "paper", "threshold": [0.2]} | settings})
    rule = cutting_rule(run, local.out, StorageConfig())
    assert (rule["name"], rule["threshold"], rule["combination"]) == ("paper", 0.2, None)
    assert rule["refusal"] == refusal
