"""New boxes from stored maps, by hand: what they are, what is carried over, done once, and refused."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.rebox import rebox
from jobs.report import run as report
from jobs.terminal.console import Screen
from pipeline.arrays.calibration import Calibration
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.calibrations import write_calibration
from pipeline.storage.lake.commit import Committer, finish_run, start_run
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.lease import Lease
from schemas.errors import StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.options.reading import ReportConfig
from schemas.options.rebox import ReboxConfig
from schemas.reasons import Reason
from tests.fake_lake import MODEL, SETTINGS, FakeLake, manifest_of, rows_of

BOX = [1.25 * 64 / 3, (1.5 - 0.5 / 1.2) * 24, 64, 48]
"""At half of the maximum of FakeLake's map, rows -1 -0.6 -0.2 and 0.2 0.6 1 on 64×48 pixels.

0.2 and 0.6 cross 0.5 three quarters of a cell beyond 0.5, and -0.2 and 1 a 0.5 / 1.2 before 1.5.
"""
FLAT = Calibration(means=(0.0,) * 6, scales=(1.0,) * 6, weights=(0.0,) * 6, bias=0.0)


@pytest.fixture(autouse=True)
def _random_bits_descend(monkeypatch):
    """Let nothing but the time put the ids of runs in order, however fast they follow each other."""
    numbers = itertools.count(1)
    falling = SimpleNamespace(token_hex=lambda n_bytes: f"{256**n_bytes - next(numbers):0{2 * n_bytes}x}")
    monkeypatch.setattr("pipeline.storage.lake.layout.secrets", falling)


@pytest.fixture
def source(tmp_path):
    lake = FakeLake(str(tmp_path / "labels"))
    lake.run({"a": "v1", "b": "v1", "c": "v1"}, {"x": Reason.TRUNCATED, "y": Reason.FETCH_FAILED}, tasks=3)
    return lake


def again(source, out="new", **options):
    place = source.out.removesuffix("labels") + out
    config = ReboxConfig.resolve({"labels": source.out, "out": place, "threshold": 0.5, "box_rule": "paper", **options})
    return rebox(config, Screen())


def new_lake(source, out="new"):
    return camlake.open(source.out.removesuffix("labels") + out)


def problems(source, out="new"):
    return verify(*connect(source.out.removesuffix("labels") + out, StorageConfig())).problems


def test_boxes_by_hand_and_all_else_as_it_was(source):
    manifest = again(source)
    counts = manifest.counts
    assert (counts.listed, counts.annotated, counts.rejected, counts.boxes) == (5, 3, 2, 6)
    assert problems(source) == ()
    with new_lake(source) as new, camlake.open(source.out) as old:
        boxes = new.arrow("boxes").sort_by([("uri", "ascending"), ("rank", "ascending")]).to_pylist()
        unchanged = "image_id, uri, etag, size_bytes, modified_at, width_px, height_px, top1_label, annotated_at"
        query = f"SELECT {unchanged}, n_boxes FROM images ORDER BY uri"
        assert new.sql(query).fetchall() == old.sql(query).fetchall()
        query = "SELECT * EXCLUDE (run_id, date) FROM quarantine ORDER BY uri"
        assert new.sql(query).fetchall() == old.sql(query).fetchall()
    assert [(box["uri"], box["rank"], box["label"]) for box in boxes[:3]] == [
        ("a", 0, "cat"),
        ("a", 1, "dog"),
        ("b", 0, "cat"),
    ]
    for box in boxes:
        assert [box[side] for side in ("xmin", "ymin", "xmax", "ymax")] == pytest.approx(BOX)
        assert box["area_frac"] == pytest.approx((BOX[2] - BOX[0]) * (BOX[3] - BOX[1]) / (64 * 48))
        assert (box["class_prob"], box["threshold"], box["component"], box["method"]) == (0.5, 0.5, 0, "cam")
        assert box["box_score"] == pytest.approx(0.35), "class_prob × .7, as nobody measured this network"
    assert manifest.lineage.source == manifest.settings["maps_of"] == source.out
    assert len(manifest.lineage.source_runs) == 1


def test_report_shows_it(source):
    again(source)
    place = source.out.replace("labels", "new")
    report(ReportConfig(out=place), Screen())
    assert source.out in (Path(place) / "_reports/report.html").read_text()


def test_least_area_changes_how_many_there_are(source):
    assert again(source, min_area=0.5).counts.boxes == 0
    assert problems(source) == ()
    with new_lake(source) as new:
        assert new.arrow("images")["n_boxes"].to_pylist() == [0, 0, 0]


def test_only_current_rows_are_taken_and_only_what_is_new(source):
    again(source)
    assert again(source).counts.planned == 0
    source.run({"a": "v2", "x": "v1", "d": "v1"})
    counts = again(source).counts
    assert (counts.listed, counts.already_done, counts.annotated, counts.rejected) == (6, 3, 3, 0)
    assert problems(source) == ()
    with new_lake(source) as new:
        query = "SELECT uri, etag FROM images ORDER BY uri"
        assert new.sql(query).fetchall() == [("a", "v2"), ("b", "v1"), ("c", "v1"), ("d", "v1"), ("x", "v1")]
        assert new.arrow("quarantine")["uri"].to_pylist() == ["y"]
    later = again(source, "later").counts
    assert (later.annotated, later.rejected) == (5, 1)
    assert problems(source, "later") == ()


def test_what_a_failed_run_committed_is_done(source, monkeypatch):
    def dies(self, task, *rows):
        if task == "000002":
            raise StoreError("disk full")
        return commit(self, task, *rows)

    commit = Committer.commit
    with monkeypatch.context() as patch:
        patch.setattr(Committer, "commit", dies)
        with pytest.raises(StoreError, match="disk full"):
            again(source)
    counts = again(source).counts
    assert (counts.already_done, counts.planned) == (4, 1)
    assert problems(source) == ()
    with new_lake(source) as new:
        assert len(new.arrow("boxes")) == 6


def test_maps_of_unknown_probability_have_no_box(tmp_path, capsys):
    # Nothing but the image tells a probability, that of its first class: a least area left out all stored boxes.
    lake, run_id = FakeLake(str(tmp_path / "labels")), "20261123T060000-abcdef"
    with Lease.acquire(lake.fs, lake.root, run_id) as lease:
        manifest = manifest_of(run_id, planned=1)
        start_run(lake.fs, lake.root, manifest)
        lake.write_plan(run_id, {"a": "v1"})
        rows = rows_of(run_id, {"a": "v1"})
        rows["boxes"] = rows["boxes"].slice(0, 0)
        lake.commit(run_id, lease.generation, "000000", rows)
        finish_run(lake.fs, lake.root, manifest, lease.generation)
    assert again(lake).counts.boxes == 1
    assert "1 maps get no box: LABELS has none of theirs" in capsys.readouterr().err
    assert problems(lake) == ()
    with new_lake(lake) as new:
        assert new.sql("SELECT rank, class_prob FROM boxes").fetchall() == [(0, 0.5)]
        assert new.arrow("images")["n_boxes"].to_pylist() == [1]


class TestBoxScore:
    def test_comes_from_where_boxes_of_the_same_rule_were_calibrated(self, source):
        write_calibration(source.fs, source.root, MODEL, FLAT, SETTINGS)
        assert self.scores(source, "new") == [pytest.approx(0.35)], "the source's is of another rule"
        place = source.out.replace("labels", "new")
        write_calibration(*connect(place, StorageConfig()), MODEL, FLAT, SETTINGS)
        assert self.scores(source, "other", calibration=place) == [0.5]
        source.run({"z": "v1"})
        assert self.scores(source, "new") == pytest.approx([0.35, 0.5]), (
            "what is done stays, what is new has the output's own"
        )

    def test_comes_from_a_source_of_the_same_rule(self, source, monkeypatch):
        rule = {"threshold": [0.5], "box_rule": "paper", "min_area": 0.0}
        monkeypatch.setattr("tests.fake_lake.SETTINGS", SETTINGS | rule)
        source.run({"z": "v1"})
        write_calibration(source.fs, source.root, MODEL, FLAT, SETTINGS)
        assert self.scores(source, "new") == [0.5]

    def test_a_calibration_of_another_rule_is_refused(self, source):
        again(source)
        place = source.out.replace("labels", "new")
        with pytest.raises(UsageError, match=r"^--calibration \S+: has none of tiny-12345678"):
            again(source, "other", calibration=place)
        write_calibration(*connect(place, StorageConfig()), MODEL, FLAT, SETTINGS)
        with pytest.raises(UsageError, match=r"--calibration \S+: fitted on boxes of --threshold 0.5, not 0.3"):
            again(source, "other", calibration=place, threshold=0.3)

    @staticmethod
    def scores(source, out, **options):
        again(source, out, **options)
        with new_lake(source, out) as new:
            return (
                new.sql("SELECT DISTINCT box_score FROM boxes ORDER BY 1 NULLS FIRST").to_arrow_table()[0].to_pylist()
            )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": "labels"}, r"^--out \S+: allowed: another place than LABELS"),
        ({"model": "resnet50"}, r"^--model 'resnet50': \S+ has tiny-12345678$"),
        ({"box_rule": "heuristic", "threshold": "0.2,0.5"}, r"^--box-rule heuristic: \S+ .* --topk 2; it takes 3"),
        ({"threshold": 0.3}, r"^--threshold: the boxes in \S+ were made with 0.5, not 0.3"),
        ({"box_rule": "all-components"}, r"^--box-rule: .* were made with paper, not all-components"),
        ({"min_area": 0.1}, r"^--min-area: .* were made with 0.0, not 0.1"),
    ],
)
def test_what_can_not_be_is_refused_in_a_line(source, options, said):
    again(source)
    with pytest.raises(UsageError, match=said):
        again(source, **options)


def test_sources_without_what_boxes_need_are_refused(source, tmp_path):
    again(source)
    boxed = FakeLake(str(tmp_path / "new"))
    with pytest.raises(UsageError, match=r"^LABELS \S+: has no heatmaps; new boxes come from heatmaps"):
        again(source, "newer", labels=boxed.out)
    with pytest.raises(StoreError, match="no camlake output with rows here"):
        again(source, "newer", labels=str(tmp_path / "none"))


def test_two_sources_and_annotate_stay_apart(source, tmp_path):
    again(source)
    other = FakeLake(str(tmp_path / "other"))
    other.run({"q": "v1"})
    with pytest.raises(UsageError, match=r"^--out \S+new: has boxes of \S+labels, not of \S+other; use another"):
        again(source, labels=other.out)
    with pytest.raises(UsageError, match=r"^--out \S+other: was made by camlake annotate, not of \S+labels"):
        again(source, "other")
