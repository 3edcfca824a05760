"""The figures of a run for Prometheus: what is in the file, when it is written, and what the dashboard draws."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.annotate.reporter import RunProgress
from pipeline.graph.annotate import metrics_file, ray_metrics
from pipeline.graph.annotate.metrics_file import run_metrics
from schemas.errors import HeldError, InputError, UsageError
from schemas.prometheus import METRICS, OUTPUT_LABEL
from schemas.runs import Counts, RunSummary
from tests.fake_lake import manifest_of

DASHBOARD = Path(__file__).resolve().parents[1] / "jobs" / "schedule" / "grafana.json"
OUT = "s3://bucket/labels"
COUNTS = Counts(listed=10, already_done=4, planned=6)
DONE = RunProgress(images=4, rejected=1, busy_s=2.5, decode_s=1.5, bytes_in=1000, retries=2)


def read(file) -> dict[str, float]:
    """Return the figures in a file as Prometheus reads it."""
    samples = [one for family in text_string_to_metric_families(file.read_text()) for one in family.samples]
    assert {tuple(one.labels.items()) for one in samples} == {((OUTPUT_LABEL, OUT),)}
    return {one.name: one.value for one in samples}


def test_the_file_follows_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_file, "EVERY_S", 0)
    file = tmp_path / "camlake.prom"
    with run_metrics(str(file), OUT, pytest.fail) as metrics:
        assert not file.exists()
        metrics.begin(COUNTS)
        begun = read(file)
        assert begun.keys() == METRICS.keys()
        assert (begun["camlake_planned_images"], begun["camlake_done_before_images"]) == (6, 4)
        assert begun["camlake_run_started_timestamp_seconds"] > 1.7e9
        assert sum(map(bool, begun.values())) == 3
        metrics.follow(DONE, workers=2)
        half = read(file)
        assert half["camlake_images_total"] == 4
        assert half["camlake_rejected_images_total"] == 1
        assert half["camlake_network_seconds_total"] == 2.5
        assert half["camlake_decode_seconds_total"] == 1.5
        assert half["camlake_read_bytes_total"] == 1000
        assert (half["camlake_store_retries_total"], half["camlake_workers"]) == (2, 2)
        assert half["camlake_run_ended_timestamp_seconds"] == half["camlake_run_succeeded"] == 0
        summary = RunSummary(seconds=2, images_per_s=3, bytes_out=77, retries=5)
        counts = COUNTS.model_copy(update={"annotated": 5, "rejected": 1})
        metrics.finished(manifest_of("r").model_copy(update={"counts": counts, "summary": summary}))
    ended = read(file)
    assert (ended["camlake_images_total"], ended["camlake_rejected_images_total"]) == (5, 1)
    assert (ended["camlake_written_bytes_total"], ended["camlake_store_retries_total"]) == (77, 5)
    assert ended["camlake_run_succeeded"] == 1
    assert ended["camlake_run_ended_timestamp_seconds"] >= ended["camlake_run_started_timestamp_seconds"]


def test_it_is_written_now_and_then_and_half_a_file_is_never_seen(tmp_path):
    file = tmp_path / "camlake.prom"
    with run_metrics(str(file), OUT, pytest.fail) as metrics:
        metrics.begin(COUNTS)
        metrics.follow(DONE, workers=2)
        assert read(file)["camlake_images_total"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["camlake.prom"]


@pytest.mark.parametrize(("error", "written"), [(InputError("x"), True), (HeldError("x"), False)])
def test_a_failure_is_in_the_file_and_a_held_output_leaves_it_alone(tmp_path, error, written):
    file = tmp_path / "camlake.prom"
    with pytest.raises(type(error)), run_metrics(str(file), OUT, pytest.fail):
        raise error
    assert file.exists() is written
    if written:
        assert read(file)["camlake_run_succeeded"] == 0
        assert read(file)["camlake_run_ended_timestamp_seconds"] > 1.7e9


def test_a_file_that_cannot_be_written_is_wrong_use_at_first_and_then_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_file, "EVERY_S", 0)
    folder = tmp_path / "gone"
    nowhere = str(folder / "camlake.prom")
    said = []
    folder.mkdir()
    with run_metrics(nowhere, OUT, said.append) as metrics:
        folder.rmdir()
        with pytest.raises(UsageError, match=r"^--metrics '\S+': can't be written: No such file or directory$"):
            metrics.begin(COUNTS)
    said.clear()
    folder.mkdir()
    with run_metrics(nowhere, OUT, said.append) as metrics:
        folder.rmdir()
        metrics.follow(DONE, workers=2)
        metrics.follow(DONE, workers=2)
    assert said == [f"warning: --metrics {nowhere!r}: can't be written: No such file or directory"]


def test_without_a_file_nothing_is_written():
    with run_metrics(None, OUT, pytest.fail) as metrics:
        metrics.begin(COUNTS)
        metrics.follow(DONE, workers=2)


def test_the_dashboard_asks_for_figures_that_there_are_and_for_all_of_them():
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    variables = {one["name"]: one["query"] for one in board["templating"]["list"]}
    assert variables["ray"] == "--metrics FILE : camlake, Ray : ray_camlake", "Ray puts ray_ before every name"
    queries = [query.replace("${ray}", "camlake") for query in [*queries, variables["output"]]]
    named = {name for query in queries for name in re.findall(r"camlake_\w+", query)}
    assert named == METRICS.keys()
    for query in queries:
        assert query.count("(") == query.count(")")
        for name in re.findall(r"(?:rate|increase)\((\w+)", query):
            assert METRICS[name].kind == "counter"
    assert f"label_values(camlake_planned_images, {OUTPUT_LABEL})" in queries
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in board["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]})


class Kept:
    """A metric of Ray that keeps what it gets."""

    def __init__(self, name, about, tag_keys):
        assert tag_keys == (OUTPUT_LABEL,)
        self.name, self.got = name, []

    def inc(self, value, tags):
        assert value > 0
        self.got.append((value, tags))

    set = inc


def test_ray_gets_what_was_added_to_a_counter_and_the_value_of_a_gauge(monkeypatch):
    made = {}
    monkeypatch.setattr(ray_metrics, "Counter", lambda *how: made.setdefault(how[0], Kept(*how)))
    gauge = type("Gauge", (Kept,), {"set": lambda self, value, tags: self.got.append((value, tags))})
    monkeypatch.setattr(ray_metrics, "Gauge", lambda *how: made.setdefault(how[0], gauge(*how)))
    with run_metrics(None, OUT, pytest.fail) as metrics:
        metrics.mirror = ray_metrics.RayMetrics(OUT)
        metrics.begin(COUNTS)
        for done in (DONE, DONE, DONE.plus(RunProgress(images=5))):
            metrics.follow(done, workers=2)
    assert made.keys() == METRICS.keys()
    assert made["camlake_images_total"].got == [(4, {OUTPUT_LABEL: OUT}), (5, {OUTPUT_LABEL: OUT})]
    assert made["camlake_written_bytes_total"].got == []
    assert made["camlake_workers"].got == [(2, {OUTPUT_LABEL: OUT})] * 3


def test_rays_own_metrics_take_these_names_and_tags():
    show = ray_metrics.RayMetrics(OUT)
    show(dict.fromkeys(METRICS, 1.0))


def test_counters_end_with_total_as_prometheus_wants():
    assert all(name.endswith("_total") == (kind == "counter") for name, (kind, _) in METRICS.items())
