"""The proxy that fails: each of its faults is met by the requests that camlake makes."""

import pytest

from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.object_reader import Objects
from pipeline.storage.inputs.versions import OtherLengthError, OtherVersionError
from pipeline.storage.lake.query import committed_views
from pipeline.storage.lake.records import committed_files, manifest_path, read_record
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from pipeline.storage.patience import PATIENCE
from schemas.errors import StoreError
from schemas.options.config import StorageConfig
from schemas.runs import RunManifest
from tests.fake_lake import FakeLake
from tests.faulty_s3 import MixedFaults, Request, faulty

GET, PUT, PLAN = Request("GET", "/b/a.jpg"), Request("PUT", "/b/a.jpg"), Request("GET", "/b/plan.parquet")


def test_the_same_seed_gives_the_same_faults():
    one, other = (MixedFaults(0.2, 7) for _ in range(2))
    faults = [one(GET) for _ in range(5000)]
    assert faults == [other(GET) for _ in range(5000)]
    assert set(faults) == {None, *MixedFaults.KINDS}
    assert 900 < sum(fault is not None for fault in faults) < 1100
    writes = {MixedFaults(0.9, seed)(PUT) for seed in range(200)}
    assert writes == {None, 500, 503, "lost", "reset", "late"}
    assert {MixedFaults(0.9, seed)(PLAN) for seed in range(200)} == {None, *MixedFaults.KINDS} - {"other"}


@pytest.fixture
def stored(s3):
    """A proxy, and the path of an object behind it."""
    with faulty(s3.endpoint_url) as proxy:
        fs, root = connect(f"s3://{s3.bucket()}/a", StorageConfig(endpoint_url=proxy.url))
        fs.pipe_file(root, b"0123456789")
        yield proxy, fs, root


@pytest.mark.parametrize("kind", [500, 503, "lost", "reset", "late", "short"])
def test_a_request_that_fails_once_is_made_again(stored, kind):
    proxy, fs, path = stored

    def once(request):
        return None if proxy.failed else kind

    proxy.fault = once
    assert Objects(100).read(fs, path, 10) == b"0123456789"
    assert len(proxy.failed) == 1
    proxy.failed.clear()
    with PATIENCE.patient():
        assert read_whole(fs, path) == b"0123456789"
        proxy.failed.clear()
        write_whole(fs, path, b"9")
        assert read_whole(fs, path) == b"9"


@pytest.mark.parametrize(("kind", "error"), [("page", OtherLengthError), ("other", OtherVersionError)])
def test_another_body_is_no_image(stored, kind, error):
    proxy, fs, path = stored
    etag = fs.info(path)["ETag"]
    proxy.fault = lambda request: kind if request.verb == "GET" and "?" not in request.path else None
    with pytest.raises(error):
        Objects(100).read(fs, path, 10, etag)


def test_a_page_in_the_place_of_a_document_is_read_again(s3):
    with faulty(s3.endpoint_url) as proxy:
        lake = FakeLake(f"s3://{s3.bucket()}/out", s3.storage)
        run = lake.run({"a": "v1"})
        fs, root = connect(lake.out, StorageConfig(endpoint_url=proxy.url))
        proxy.fault = lambda request: "page" if request.verb == "GET" and len(proxy.failed) < 3 else None
        path = manifest_path(root, run)
        assert read_record(fs, path, RunManifest).run_id == run.run_id
        assert len(proxy.failed) == 3
        proxy.fault = lambda request: "page"
        with pytest.raises(StoreError, match="can't be read: the answer has no version tag"):
            read_record(fs, path, RunManifest)
        proxy.failed.clear()
        proxy.fault = lambda request: "page" if "part-" in request.path and len(proxy.failed) < 2 else None
        with committed_views(fs, root, committed_files([run])) as con:
            assert con.sql("SELECT count(*) FROM images").fetchall() == [(1,)]
        assert len(proxy.failed) == 2
