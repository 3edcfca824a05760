"""What the suite of the GPU does beside CUDA: decoding in processes, asking nvidia-smi, its ratios; what facts lack."""

import json
from importlib import metadata

import pytest

from jobs import benchmark
from jobs.benchmark import gpu, result
from jobs.benchmark.decode_tasks import decoded_per_s, fetched_table
from jobs.benchmark.gpu_busy import busy_share, following_busy_share
from jobs.benchmark.photographs import make_photographs
from jobs.terminal.console import Screen
from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.images.decode import DecodeLimits
from pipeline.images.resize import ResizePlan
from pipeline.storage.lake import lineage
from schemas.errors import UsageError
from schemas.options.benchmark import BenchmarkConfig, MeasureConfig

SPEC = DecodeSpec(DecodeLimits(10**6, 10**6, 30.0), ResizePlan("squash", 32, (4, 4)))


def test_processes_decode_side_by_side(tmp_path):
    photographs = make_photographs(MeasureConfig(), tmp_path, 3, (48, 64))
    assert DecodeStage(SPEC)(fetched_table(photographs))["reason_code"].null_count == 3
    assert decoded_per_s(SPEC, photographs, 2, 0.05) > 0


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Return what makes nvidia-smi a program that runs the given line of shell."""

    def put(line):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return put


def test_several_gpus_count_alike(nvidia_smi):
    nvidia_smi("echo 100; echo 25")
    assert busy_share() == 0.625


@pytest.mark.parametrize("line", ["echo '[N/A]'", "exit 9", "true", "echo 50; echo '[Not Supported]'"])
def test_what_nvidia_smi_can_not_tell_is_an_error_and_no_figure(nvidia_smi, line):
    nvidia_smi(line)
    with pytest.raises(UsageError, match="nvidia-smi does not tell the utilization"):
        busy_share()
    assert gpu._note_of_busy_share()[gpu.BUSY].startswith("left out: nvidia-smi")


def test_a_machine_without_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="nvidia-smi does not tell the utilization"):
        busy_share()


def test_one_lost_answer_does_not_end_the_following(nvidia_smi, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.benchmark.gpu_busy.EVERY_S", 0.01)
    nvidia_smi(f"if mkdir {tmp_path}/asked; then exit 9; fi; echo 50; touch {tmp_path}/told")
    with following_busy_share() as shares:
        while not shares:
            pass
    assert {share for _, share in shares} == {0.5}


def test_the_job_is_held_against_its_slowest_stage_on_all_gpus():
    names = ("bare images/s", "actor images/s", "actor with one thread images/s", "network s", "no network s")
    runs = {name: [1.0] for name in (*names, "box kernel µs a map")}
    runs |= {"no network, maps and boxes s": [1.5], "actor images/s": [100.0], "job images/s": [180.0]}
    figures = gpu._figures(runs | {"decode tasks images/s": [400.0]}, gpus=2)
    assert (figures["slowest stage"], figures["job / its slowest stage"]["median"]) == ("actor", 0.9)
    figures = gpu._figures(runs | {"decode tasks images/s": [190.0]}, gpus=2)
    assert figures["slowest stage"] == "decode tasks"


def test_a_package_that_is_not_installed_costs_no_figure(tmp_path, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    order = []
    monkeypatch.setattr("pipeline.storage.lake.lineage.metadata.version", version)
    monkeypatch.setattr(
        "jobs.benchmark.memory.measure", lambda config, reporter: order.append("measured") or {"ratio": 2.0}
    )
    facts = result.machine_facts
    monkeypatch.setattr(result, "machine_facts", lambda: order.append("facts") or facts())
    benchmark.run(BenchmarkConfig(suite="memory", result=str(tmp_path / "result.json")), Screen())
    machine = json.loads((tmp_path / "result.json").read_text())["machine"]
    assert order == ["facts", "measured"]
    assert machine["camlake"] == machine["packages"]["torch"] == lineage.NOT_INSTALLED
