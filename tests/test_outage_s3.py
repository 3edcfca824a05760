"""A run on S3 outlasts minutes without answers, and answers that were lost; the minutes are those of a fake clock."""

import signal
import subprocess
import time

import pytest

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.storage import filesystems, fsspec_private
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.lease import lease_when_free
from pipeline.storage.lake.records import load_runs
from schemas.errors import Stopped
from schemas.options.config import StorageConfig
from tests.fake_lake import FakeLake, manifest_of, problems, rows_of
from tests.faulty_s3 import faulty
from tests.faulty_store import FakeTime, patient_in
from tests.jobs_on import ROOT, command, run_annotate

RUN = "20261130T020000.000-abcdef"
URIS = [f"s3://b/{number}.jpg" for number in range(4)]


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        pytest.param(500, "/commits/", id="commits"),
        pytest.param("lost", "", id="lost answers"),
        pytest.param(503, "", id="all requests", marks=pytest.mark.slow),
    ],
)
def test_a_run_outlasts_an_outage(s3, monkeypatch, kind, where):
    """Each commit, the final manifest and the release of the lease meet one; without it the rows are the same."""
    monkeypatch.setattr(filesystems, "_S3_ATTEMPTS", 0)
    monkeypatch.setattr(fsspec_private, "_S3FS_TRIES", 1)
    fake, said = FakeTime(), []
    patient_in(fake, monkeypatch)
    with faulty(s3.endpoint_url) as proxy:
        lake = FakeLake(f"s3://{s3.bucket()}/out", StorageConfig(endpoint_url=proxy.url))

        def begin_outage(seconds):
            until_s = fake.now_s + seconds
            proxy.fault = lambda asked: kind if fake.now_s < until_s and where in asked.path else None

        with lease_when_free(lake.fs, lake.root, RUN, say=said.append) as lease:
            manifest = manifest_of(RUN, planned=len(URIS))
            begin_outage(60)
            start_run(lake.fs, lake.root, manifest)
            lake.write_plan(RUN, dict.fromkeys(URIS, "v1"))
            for task, uri in enumerate(URIS):
                begin_outage(60)
                lake.commit(RUN, lease.generation, f"{task:06d}", rows_of(RUN, {uri: "v1"}))
            begin_outage(60)
            finish_run(lake.fs, lake.root, manifest, lease.generation)
            proxy.fault = lambda asked: None
        assert proxy.failed
        assert any(text.startswith("the output store has been failing") for text in said)
        assert "Message" not in str(said)
    direct = FakeLake(lake.out, s3.storage)
    (run,) = load_runs(*connect(direct.out, direct.storage))
    assert (run.status, run.counts.annotated) == ("complete", len(URIS))
    assert problems(direct) == []
    uploads = s3.client.list_multipart_uploads(Bucket=lake.root.split("/")[0]).get("Uploads", [])
    assert uploads == []


@pytest.mark.slow
def test_a_signal_in_the_middle_of_an_outage_ends_the_run(s3, tmp_path):
    """Nothing of the run's end reaches the store; the lease expires, and the next run does the rest."""
    write_corpus(tmp_path, 160, seed=5, size_hw=(48, 64), broken=0)
    bucket = s3.bucket()
    out = f"s3://{bucket}/out"
    with faulty(s3.endpoint_url) as proxy:
        words = command("annotate", tmp_path / "images", "--out", out, "--model", "camlake_demo", "--actors", "1")
        words += ["--batch-size", "4", "--images-per-commit", "8", "--engine", "local", "--endpoint-url", proxy.url]
        words += ["--topk", "2", "--precision", "fp32", "--box-rule", "paper"]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while not any("/commits/" in key for key in s3.keys(bucket)):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.02)
            proxy.fault = lambda asked: 503
            time.sleep(4)
            assert process.poll() is None
            asked_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            took_s = time.monotonic() - asked_s
    assert process.returncode == Stopped.exit_status
    assert took_s < 20
    assert said.splitlines()[-1] == "camlake: stopped; run the same command again to go on"
    counts = run_annotate(tmp_path / "images", out, endpoint_url=s3.endpoint_url).counts
    assert counts.already_done > 0
    assert counts.already_done + counts.annotated == 160
    assert problems(FakeLake(out, s3.storage)) == []
