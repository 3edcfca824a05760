"""What arrives is what was listed: another length is fetched again, another version is never taken for the listed one.

Each case is a store that answers in a way that was reported of a real one.
"""

import io
import json
import os
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from schemas.options.config import StorageConfig
from tests.fetching import fetch, plan_of, planned, reason
from tests.listings import LOCAL, listed, tar_bytes
from tests.serving import QuietHandler, serving

FULL = b"0123456789"
RIGHT = b"\xff\xd8\xff right"  # begins as a JPEG does


class _Store(QuietHandler):
    """Answers each GET with the next of ``answers``, (body, ETag), and for ever with the last one."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[tuple[bytes, str | None]]] = []
    gets = 0

    def do_GET(self) -> None:  # noqa: N802 (the base class's name)
        _Store.gets += 1
        body, etag = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        span = self.headers["Range"]
        if span and self.path.startswith("/b/"):
            start, end = map(int, span.removeprefix("bytes=").split("-"))
            body = body[start : end + 1]
        tag = {"ETag": etag} if etag else {}
        self.answer(body, 206 if span and self.path.startswith("/b/") else 200, **self._times(), **tag)

    def do_HEAD(self) -> None:  # noqa: N802 (the base class's name)
        self.answer(b"", **self._times())

    @staticmethod
    def _times() -> dict[str, str]:
        return {"Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


@pytest.fixture
def store(monkeypatch) -> Iterator[str]:
    monkeypatch.setattr("pipeline.storage.inputs.fetch._FIRST_WAIT_S", 0.0)
    _Store.gets = 0
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _Store)) as url:
        yield url


CASES = [
    ("whole", [(FULL, '"1"')], FULL, 1),
    ("no tag in the answer", [(FULL, None)], FULL, 1),
    ("a weak tag of the same version", [(FULL, 'W/"1"')], FULL, 1),
    ("a tag without quotes", [(FULL, "1")], FULL, 1),
    ("short with a fitting Content-Length", [(FULL[:4], '"1"')], "fetch_failed", 3),
    ("empty with a fitting Content-Length", [(b"", '"1"')], "fetch_failed", 3),
    ("an error page with status 200", [(b"<html>Slow down", None)], "fetch_failed", 3),
    ("longer than listed", [(FULL * 2, '"1"')], "fetch_failed", 3),
    ("larger than allowed, but listed as small", [(FULL * 200, '"1"')], "fetch_failed", 3),
    ("short once", [(FULL[:4], '"1"'), (FULL, '"1"')], FULL, 2),
    ("short twice", [(FULL[:4], '"1"'), (b"", '"1"'), (FULL, '"1"')], FULL, 3),
    ("another version of the same length", [(b"9876543210", '"2"')], "changed", 2),
    ("another version of another length", [(b"98", '"2"')], "changed", 2),
    ("another version once", [(b"9876543210", '"2"'), (FULL, '"1"')], FULL, 2),
]


@pytest.mark.parametrize("protocol", ["s3", "http"])
@pytest.mark.parametrize(("name", "answers", "ending", "gets"), CASES, ids=[case[0] for case in CASES])
def test_an_object_that_is_not_what_was_listed(store, protocol, name, answers, ending, gets):
    _Store.answers = list(answers)
    url, path = ("s3://b/k.jpg", "b/k.jpg") if protocol == "s3" else (f"{store}/k.jpg",) * 2
    plan = planned({"uri": url, "path": path, "size_bytes": len(FULL), "etag": "1"})
    (found,) = fetch(plan, StorageConfig(endpoint_url=store))
    assert (found if isinstance(found, bytes) else reason(found)) == ending
    assert _Store.gets == gets
    if not isinstance(found, bytes):
        assert not found.reason.permanent


def test_an_object_of_unknown_size_and_version_is_taken_as_it_is(store):
    _Store.answers = [(b"whatever", '"7"')]
    assert fetch(planned({"uri": "s3://b/k", "path": "b/k"}), StorageConfig(endpoint_url=store)) == [b"whatever"]


@pytest.mark.parametrize("protocol", ["s3", "http"])
def test_members_of_a_shard_of_another_version(store, protocol):
    shard = tar_bytes({"a.jpg": FULL})
    url, path = ("s3://b/s.tar", "b/s.tar") if protocol == "s3" else (f"{store}/s.tar",) * 2
    row = {"uri": f"{url}#a.jpg", "path": path, "offset": 512, "size_bytes": 10, "etag": "1"}
    for answers, ending in (
        ([(shard, '"1"')], FULL),
        ([(shard, '"2"')], "changed"),
        ([(shard, '"2"'), (shard, '"1"')], FULL),
        ([(shard[:515], '"1"')], "fetch_failed"),
        ([(shard[:515], '"1"'), (shard, '"1"')], FULL),
    ):
        _Store.answers = list(answers)
        (found,) = fetch(planned(row), StorageConfig(endpoint_url=store))
        assert (found if isinstance(found, bytes) else reason(found)) == ending, answers


def parquet_bytes(values: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": values}), buffer)
    return buffer.getvalue()


def test_rows_of_a_parquet_file_of_another_version(s3):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="p.parquet", Body=parquet_bytes([b"old", b"older"]))
    plan = plan_of(f"s3://{bucket}/p.parquet", s3.storage)
    assert fetch(plan, s3.storage) == [b"old", b"older"]
    s3.client.put_object(Bucket=bucket, Key="p.parquet", Body=parquet_bytes([b"new", b"newer"]))
    assert [reason(item) for item in fetch(plan, s3.storage)] == ["changed", "changed"]


def test_a_store_with_tags_that_only_info_tells(monkeypatch):
    """Google's and Azure's clients give no tag with the bytes; it is asked for after them."""
    fsspec.filesystem("memory").pipe_file("/b/k.jpg", FULL)
    plan = planned({"uri": "memory://b/k.jpg", "path": "/b/k.jpg", "size_bytes": 10, "etag": "1"})
    info = MemoryFileSystem.info
    for etag, ending in (("1", FULL), ("2", "changed")):
        monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path, e=etag: {**info(self, path), "etag": e})
        (found,) = fetch(plan)
        assert (found if isinstance(found, bytes) else reason(found)) == ending


def test_a_local_file_that_grew_or_shrank(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(FULL)
    plan = plan_of(str(path))
    for content in (FULL + b"x", FULL[:3], b""):
        path.write_bytes(content)
        assert [reason(item) for item in fetch(plan)] == ["fetch_failed"]


@pytest.mark.parametrize("key", ["q?versionId=1.jpg", "q?versionId=", "a/?versionId=abc/b.jpg", "?versionId=1"])
def test_a_key_that_looks_like_a_version_is_a_key(s3, key):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key=f"k/{key}", Body=RIGHT)
    s3.client.put_object(Bucket=bucket, Key="k/q", Body=b"wrong")
    plan = plan_of(f"s3://{bucket}/k", s3.storage)
    found = dict(zip(plan["path"].to_pylist(), fetch(plan, s3.storage), strict=True))
    assert found[f"{bucket}/k/{key}"] == RIGHT
    (row,) = listed(f"s3://{bucket}/k/{key}", s3.storage)
    assert (row["uri"], row["size_bytes"]) == (f"s3://{bucket}/k/{key}", len(RIGHT))


def test_versions_of_a_bucket_with_versioning(s3):
    """The newest version is the object; its tag is that of the listing."""
    bucket = s3.bucket()
    s3.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"first", b"second"):
        s3.client.put_object(Bucket=bucket, Key="a.jpg", Body=body)
    s3.client.put_object(Bucket=bucket, Key="gone.jpg", Body=b"x")
    s3.client.delete_object(Bucket=bucket, Key="gone.jpg")
    plan = plan_of(f"s3://{bucket}", s3.storage)
    assert fetch(plan, s3.storage) == [b"second"]


@pytest.mark.parametrize("kind", ["shard", "parquet"])
def test_a_container_without_a_tag_has_its_size_and_time_as_version(tmp_path, kind):
    def content(values: list[bytes]) -> bytes:
        return (
            tar_bytes({f"{i}.jpg": data for i, data in enumerate(values)}) if kind == "shard" else parquet_bytes(values)
        )

    path = tmp_path / ("s.tar" if kind == "shard" else "s.parquet")
    path.write_bytes(content([b"a", b"b"]))
    before = {row["uri"]: row for row in listed(path)}
    times = path.stat().st_mtime_ns
    path.write_bytes(content([b"a", b"b", b"c" * 20_000]))
    os.utime(path, ns=(times, times))  # as rsync --times and cp -p leave it
    after = {row["uri"]: row for row in listed(path)}
    assert len(after) == 3
    for uri, row in before.items():
        assert row["etag"]
        assert after[uri]["etag"] != row["etag"]
    assert listed(path) == listed(path)


def test_a_manifests_own_tag_and_size_hold_too(store, tmp_path):
    _Store.answers = [(FULL, '"2"')]
    rows = [{"uri": f"{store}/a.jpg", "etag": "1", "size_bytes": 10}, {"uri": f"{store}/b.jpg", "size_bytes": 9}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = fetch(plan_of(str(tmp_path / "m.jsonl"), LOCAL))
    assert [reason(item) for item in found] == ["changed", "fetch_failed"]
