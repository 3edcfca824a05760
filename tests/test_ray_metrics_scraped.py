"""The metrics of a run as Prometheus would read them from a real Ray, and the dashboard's queries against them."""

import json
import re
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from schemas.prometheus import METRICS, OUTPUT_LABEL
from tests.jobs_on import ROOT
from tests.ray_clusters import free_ports
from tests.test_metrics_file import DASHBOARD, OUT

SCRIPT = """
import sys, time, urllib.request
import ray
from pipeline.graph.annotate.ray_metrics import RayMetrics
from schemas.prometheus import METRICS

port, output = int(sys.argv[1]), sys.argv[2]
ray.init(
    address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=port, log_to_driver=False,
    object_store_memory=100_000_000, _system_config={"metrics_report_interval_ms": 500},
)
show = RayMetrics(output)
for value in (2.0, 5.0):
    show(dict.fromkeys(METRICS, value))
wanted = [f"ray_{name}{{" for name in METRICS]
for _ in range(200):
    time.sleep(0.2)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        continue
    if all(name in text for name in wanted):
        break
print(text)
"""


@pytest.fixture(scope="module")
def scraped() -> dict[str, tuple[dict[str, str], float]]:
    """The labels and the value of each sample of camlake's, by name."""
    (port,) = free_ports(1)
    command = [sys.executable, "-c", SCRIPT, str(port), OUT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    samples = [one for family in text_string_to_metric_families(done.stdout) for one in family.samples]
    return {one.name: (one.labels, one.value) for one in samples if "camlake" in one.name}


pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def test_each_figure_has_its_name_its_output_and_its_value(scraped):
    assert scraped.keys() == {f"ray_{name}" for name in METRICS}
    assert {labels[OUTPUT_LABEL] for labels, _ in scraped.values()} == {OUT}
    assert {value for _, value in scraped.values()} == {5.0}


def test_the_dashboard_asks_for_what_ray_exports(scraped):
    board = json.loads(DASHBOARD.read_text())
    (choice,) = [one["query"] for one in board["templating"]["list"] if one["name"] == "ray"]
    prefix = choice.rpartition("Ray : ")[2]
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {
        name for query in queries for name in re.findall(r"\w+", query.replace("${ray}", prefix)) if prefix in name
    }
    assert named == scraped.keys()
