"""A run on S3 outlasts minutes without answers, and answers that were lost; the minutes are those of a fake clock."""

import pytest

from pipeline.storage import filesystems, fsspec_private
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.lease import lease_when_free
from pipeline.storage.lake.records import load_runs
from schemas.options.config import StorageConfig
from tests.fake_lake import FakeLake, manifest_of, problems, rows_of
from tests.faulty_s3 import faulty
from tests.faulty_store import FakeTime, patient_in

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
    time, said = FakeTime(), []
    patient_in(time, monkeypatch)
    with faulty(s3.endpoint_url) as proxy:
        lake = FakeLake(f"s3://{s3.bucket()}/out", StorageConfig(endpoint_url=proxy.url))

        def begin_outage(seconds):
            until_s = time.now_s + seconds
            proxy.fault = lambda asked: kind if time.now_s < until_s and where in asked.path else None

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
