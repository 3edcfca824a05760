"""Fetching plain objects from every kind of store: right bytes, true reasons, bounded reads, no secrets."""

import json
import os
import pickle
import socket
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import ClassVar

import fsspec
import pyarrow as pa
import pytest
from s3fs import S3FileSystem

from pipeline.storage.inputs.fetch import Fetcher
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig
from schemas.tables import PLAN
from tests.fetching import MAX_BYTES, fetch, plan_of, planned, reason
from tests.listings import LOCAL
from tests.serving import QuietHandler, serving


def test_local_files_in_the_plans_order(tmp_path):
    names = ["c", "a b", "ü#?%", "b"]
    for name in names:
        (tmp_path / name).write_text(f"bytes of {name}")
    plan = planned(*({"uri": f"{tmp_path}/{name}"} for name in names))
    assert fetch(plan) == [f"bytes of {name}".encode() for name in names]
    assert fetch(plan.slice(0, 0)) == []


def test_local_failures_say_why(tmp_path, monkeypatch):
    (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "just").write_bytes(b"x" * MAX_BYTES)
    (tmp_path / "empty").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    names = ["large", "just", "empty", "gone", "pipe", "", "just/under", "nul\0", "no"]
    found = fetch(planned(*({"uri": f"{tmp_path}/{name}"} for name in names)))
    assert reason(found[0]) == "too_many_bytes"
    assert found[1:3] == [b"x" * MAX_BYTES, b""]
    assert [reason(item) for item in found[3:]] == ["not_found"] * 6


def test_what_is_listed_as_too_large_is_not_read(tmp_path):
    (found,) = fetch(planned({"uri": f"{tmp_path}/not there", "size_bytes": MAX_BYTES + 1}))
    assert isinstance(found, RejectedImage)
    assert (found.reason, found.detail) == ("too_many_bytes", "1001 bytes, more than the 1000 that max_bytes allows")


def test_rejections_of_the_listing_pass_through():
    plan = planned(
        {"uri": "m#row=1", "reason_code": "missing_uri", "detail": "row 1 has no uri"},
        {"uri": "s.tar", "reason_code": "unreadable_container"},
    )
    found = fetch(plan)
    assert [(str(item.reason), item.detail) for item in found if isinstance(item, RejectedImage)] == [
        ("missing_uri", "row 1 has no uri"),
        ("unreadable_container", "the shard or Parquet file can't be read"),
    ]


def test_a_mix_of_stores(tmp_path, s3):
    bucket = s3.bucket()
    (tmp_path / "a.jpg").write_bytes(b"local")
    fsspec.filesystem("memory").pipe_file("/m/b.jpg", b"memory")
    s3.client.put_object(Bucket=bucket, Key="c.jpg", Body=b"s3")
    (tmp_path / "m.jsonl").write_text(
        "\n".join(
            json.dumps({"uri": uri})
            for uri in ("a.jpg", "memory://m/b.jpg", f"s3://{bucket}/c.jpg", "nope://x", f"s3://{bucket}/d.jpg", "")
        )
    )
    found = fetch(plan_of(str(tmp_path / "m.jsonl"), s3.storage), s3.storage)
    assert found[:3] == [b"local", b"memory", b"s3"]
    assert [reason(item) for item in found[3:]] == ["fetch_failed", "not_found", "missing_uri"]


WEIRD = [
    "ü 猫.jpg",
    "a#b.jpg",
    "a?b.jpg",
    "a%20b.jpg",
    "quo'te\"s.jpg",
    "st*r[1].jpg",
    "a::b.jpg",
    "+&=.jpg",
    "a//b.jpg",
]
WEIRD += ["x/../y.jpg", "x/./y.jpg", "v?versionId.jpg", "back\\slash.jpg", "~.jpg"]


def test_weird_keys_fetch_their_own_bytes(object_store):
    bucket = object_store.bucket()
    keys = [f"k/{name}" for name in WEIRD] + (["k/new\nline.jpg"] if object_store.name == "ceph" else [])
    for key in keys:
        object_store.client.put_object(Bucket=bucket, Key=key, Body=f"bytes of {key}".encode())
    plan = plan_of(f"s3://{bucket}/k", object_store.storage)
    found = dict(zip(plan["path"].to_pylist(), fetch(plan, object_store.storage), strict=True))
    assert found == {f"{bucket}/{key}": f"bytes of {key}".encode() for key in keys}


class _Bucket(QuietHandler):
    """As much of S3 as a GET takes; notes each request and its connection."""

    protocol_version = "HTTP/1.1"
    requests: ClassVar[list[tuple[str, str, str | None]]] = []
    regions: ClassVar[Counter[str]] = Counter()
    """Of the signatures."""
    connections: ClassVar[set[tuple[str, int]]] = set()
    failures: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:  # noqa: N802 (the base class's name)
        self.requests.append((self.command, self.path, self.headers["Range"]))
        self.regions[self.headers["Authorization"].split("/")[2]] += 1
        self.connections.add(self.client_address)
        self.failures[self.path] -= 1
        body = self.path.encode()
        status = 503 if self.failures[self.path] >= 0 else 200
        self.answer(body, status, Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT", x_amz_bucket_region="eu-north-1")

    do_HEAD = do_GET  # noqa: N815 (the base class's name)


@pytest.fixture
def counting() -> Iterator[type[_Bucket]]:
    _Bucket.requests.clear()
    _Bucket.connections.clear()
    _Bucket.failures.clear()
    _Bucket.regions.clear()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _Bucket)) as url:
        _Bucket.storage = StorageConfig(endpoint_url=url)
        yield _Bucket


def test_s3_objects_are_one_get_each_over_few_connections(counting):
    plan = planned(*({"uri": f"s3://b/k/{number}", "path": f"b/k/{number}"} for number in range(100)))
    assert fetch(plan, counting.storage) == [f"/b/k/{number}".encode() for number in range(100)]
    bucket, *objects = counting.requests
    assert bucket[:2] == ("HEAD", "/b")  # once: where does it lie?
    assert sorted(objects) == sorted(("GET", f"/b/k/{number}", None) for number in range(100))
    assert len(counting.connections) <= 12
    assert counting.regions == {"us-east-1": 1, "eu-north-1": 100}  # the bucket's own, as the first answer names it


def test_s3_objects_are_tried_again(counting):
    counting.failures["/b/k"] = 2
    assert fetch(planned({"uri": "s3://b/k", "path": "b/k"}), counting.storage) == [b"/b/k"]
    assert [request[0] for request in counting.requests] == ["HEAD", "GET", "GET", "GET"]


def test_keys_that_obstore_has_no_path_for_are_read_by_s3fs(counting):
    keys = ["a//b", "/a", "a/", "a/../b", "."]
    plan = planned(*({"uri": f"s3://b/{key}", "path": f"b/{key}"} for key in keys))
    assert fetch(plan, counting.storage) == [f"/b/{key}".encode() for key in keys]


def test_s3_objects_of_unknown_size_are_bounded(s3):
    bucket = s3.bucket()
    for size in (0, MAX_BYTES, MAX_BYTES + 1, 100 * MAX_BYTES):
        s3.client.put_object(Bucket=bucket, Key=f"{size:06d}.jpg", Body=b"x" * size)
    plan = plan_of(f"s3://{bucket}", s3.storage)
    plan = plan.set_column(3, PLAN.field("size_bytes"), pa.nulls(len(plan), pa.int64()))
    found = fetch(plan, s3.storage)
    assert found[:2] == [b"", b"x" * MAX_BYTES]
    assert [str(item) for item in found[2:]] == [
        f"too_many_bytes: {size} bytes, more than the 1000 that max_bytes allows" for size in (1001, 100_000)
    ]


def test_a_changed_object_is_fetched_under_its_own_version(s3):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="a.jpg", Body=b"old")
    before = plan_of(f"s3://{bucket}", s3.storage)
    s3.client.put_object(Bucket=bucket, Key="a.jpg", Body=b"newer")
    after = plan_of(f"s3://{bucket}", s3.storage)
    assert before["image_id"] == after["image_id"]
    assert before["etag"] != after["etag"]
    assert [reason(item) for item in fetch(before, s3.storage)] == ["changed"]
    assert fetch(after, s3.storage) == [b"newer"]
    s3.client.delete_object(Bucket=bucket, Key="a.jpg")
    assert [reason(item) for item in fetch(after, s3.storage)] == ["not_found"]


def test_a_store_that_refuses_says_so_without_secrets(ceph, monkeypatch):
    bucket = ceph.bucket()
    ceph.client.put_object(Bucket=bucket, Key="a.jpg", Body=b"x")
    plan = plan_of(f"s3://{bucket}", ceph.storage)
    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    (found,) = fetch(plan, ceph.storage)
    assert reason(found) == "access_denied"
    assert "secret" not in found.detail.lower()
    anonymous = ceph.storage.model_copy(update={"anonymous": True})
    assert reason(fetch(plan, anonymous)[0]) == "access_denied"


def test_a_store_that_is_not_there(monkeypatch):
    monkeypatch.setattr("pipeline.storage.filesystems._S3_ATTEMPTS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://user:hush@127.0.0.1:{free.getsockname()[1]}"
    (found,) = fetch(planned({"uri": "s3://b/k", "path": "b/k", "size_bytes": 1}), StorageConfig(endpoint_url=endpoint))
    assert reason(found) == "fetch_failed"
    assert "hush" not in found.detail


# -- a web server ------------------------------------------------------------------------------------------------------


class _Web(QuietHandler):
    failures_left = 0

    def do_GET(self) -> None:  # noqa: N802 (the base class's name)
        kind, _, query = self.path[1:].partition("?")
        if kind == "flaky" and _Web.failures_left:
            _Web.failures_left -= 1
            kind = "503"
        status = int(kind) if kind.isdigit() else 200
        body = b"x" * 5000 if kind == "large" else f"{kind} {query}".encode()
        self.answer(body, status)

    do_HEAD = do_GET  # noqa: N815 (the base class's name)


@pytest.fixture
def web() -> Iterator[str]:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _Web)) as url:
        yield url


def test_signed_urls_fetch_and_their_secrets_stay_in_the_plan(web, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.inputs.fetch._FIRST_WAIT_S", 0.0)
    _Web.failures_left = 2
    names = ["a.jpg?v=1&X-Amz-Signature=hush", "404?token=hush", "403?sig=hush", "500?sig=hush", "large", "flaky"]
    uris = [f"{web}/{name}" for name in names]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"uri": uri, "etag": "e"}) for uri in uris))
    plan = plan_of(str(tmp_path / "m.jsonl"))
    assert plan["uri"].to_pylist() == [f"{web}/{name}" for name in ("a.jpg?v=1", "404", "403", "500", "large", "flaky")]
    found = fetch(plan)
    assert found[0] == b"a.jpg v=1&X-Amz-Signature=hush"
    assert [reason(item) for item in found[1:5]] == ["not_found", "access_denied", "fetch_failed", "too_many_bytes"]
    assert not any("hush" in str(item) for item in found[1:])
    assert found[5] == b"flaky "


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_fetcher_travels_between_processes_without_connections(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    plan = planned({"uri": f"{tmp_path}/a"})
    fetcher = Fetcher(LOCAL, MAX_BYTES)
    assert fetcher.fetch(plan) == [b"1"]
    assert pickle.loads(pickle.dumps(fetcher)).fetch(plan) == [b"1"]
