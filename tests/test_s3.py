"""The job with input and output in buckets, on moto and on Ceph: credentials from the environment, signed requests."""

import pyarrow as pa
import pytest

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import Lease
from schemas.errors import InputError, LeaseError, StoreError
from schemas.options.config import StorageConfig
from schemas.options.rebox import ReboxConfig
from tests.jobs_on import run_annotate, run_command


@pytest.fixture
def photographs(object_store, tmp_path):
    """A bucket with 12 pictures, one of them under a key that needs quoting, and a broken one."""
    bucket = object_store.bucket()
    write_corpus(tmp_path, 12, seed=1, size_hw=(64, 80), broken=1)
    for index, path in enumerate(sorted((tmp_path / "images").iterdir())):
        name = path.name if index else f"weird key/ü#1 % {path.name}"
        object_store.client.put_object(Bucket=bucket, Key=f"photos/{name}", Body=path.read_bytes())
    return f"s3://{bucket}/photos"


def test_bucket_to_bucket(object_store, photographs):
    bucket = object_store.bucket()
    out, endpoint = f"s3://{bucket}/labels", object_store.endpoint_url
    first = run_annotate(photographs, out, endpoint_url=endpoint).counts
    assert (first.annotated, first.rejected) == (12, 1)
    again = run_annotate(photographs, out, endpoint_url=endpoint).counts
    assert (again.already_done, again.planned) == (13, 0)

    with camlake.open(out, endpoint_url=endpoint) as lake:
        images = lake.arrow("images")
        assert len(lake.arrow("boxes")) == sum(images["n_boxes"].to_pylist())
    assert all(images["etag"].to_pylist())
    assert [uri for uri in images["uri"].to_pylist() if "ü#1 %" in uri]
    assert verify(*connect(out, StorageConfig(endpoint_url=endpoint))).problems == ()
    outside = [key for key in object_store.keys(bucket) if not key.startswith("labels/")]
    assert outside == []

    options = {"labels": out, "out": f"s3://{bucket}/again", "endpoint_url": endpoint, "box_rule": "paper"}
    counts = rebox(ReboxConfig.resolve(options), Screen()).counts
    assert (counts.annotated, counts.rejected) == (12, 1)
    assert rebox(ReboxConfig.resolve(options), Screen()).counts.already_done == 13
    with camlake.open(out, endpoint_url=endpoint) as old, camlake.open(options["out"], endpoint_url=endpoint) as new:
        query = "SELECT uri, rank, label, class_prob FROM boxes ORDER BY uri, rank"
        assert new.sql(query).fetchall() == old.sql(query).fetchall() != []
    assert verify(*connect(options["out"], StorageConfig(endpoint_url=endpoint))).problems == ()


def test_secrets_stay_out_of_the_bucket(object_store, photographs):
    bucket = object_store.bucket()
    run_annotate(photographs, f"s3://{bucket}/labels", endpoint_url=object_store.endpoint_url, limit=2)
    for key in object_store.keys(bucket):
        body = object_store.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert b"testsecret" not in body, key


def test_a_public_bucket_is_read_without_credentials(ceph, tmp_path, monkeypatch):
    bucket = ceph.bucket()
    ceph.client.put_bucket_acl(Bucket=bucket, ACL="public-read")
    ceph.client.put_object(Bucket=bucket, Key="photos/a.jpg", Body=b"public", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage = StorageConfig(endpoint_url=ceph.endpoint_url, anonymous=True)
    plan = pa.Table.from_batches(list_inputs(f"s3://{bucket}/photos", storage).batches)
    assert Fetcher(storage, max_bytes=100).fetch(plan) == [b"public"]
    with pytest.raises(InputError, match=r"no credentials found; .* or --anonymous"):
        list(list_inputs(f"s3://{bucket}/photos", storage.model_copy(update={"anonymous": False})).batches)


def test_a_held_output_is_refused(object_store, photographs):
    out = f"s3://{object_store.bucket()}/labels"
    with (
        Lease.acquire(*connect(out, object_store.storage), new_run_id()),
        pytest.raises(LeaseError, match="is being written by run"),
    ):
        run_annotate(photographs, out, endpoint_url=object_store.endpoint_url)


def test_a_missing_bucket_is_one_clear_line(object_store, photographs):
    done = run_command(
        "annotate",
        photographs,
        *("--out", "s3://no-such-bucket-here/labels", "--endpoint-url", object_store.endpoint_url),
        *("--model", "camlake_demo"),
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("camlake:")]
    assert len(errors) == 1
    assert "no-such-bucket-here" in errors[0]


def test_wrong_credentials_are_one_clear_line(ceph, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(StoreError) as caught:
        camlake.open(f"s3://{ceph.bucket()}/labels", endpoint_url=ceph.endpoint_url)
    assert "wrong-secret" not in str(caught.value)
