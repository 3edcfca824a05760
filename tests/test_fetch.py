"""Fetching planned images from every kind of input and store: right bytes, true reasons, bounded reads, no secrets."""

import io
import json
import os
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from pipeline.storage.fetch import Fetched, Fetcher
from pipeline.storage.listing import image_id, list_inputs
from schemas.config import StorageConfig
from schemas.errors import RejectedImage
from schemas.tables import PLAN

LOCAL = StorageConfig()
MAX_BYTES = 1000


def plan_of(url: str, storage: StorageConfig = LOCAL) -> pa.Table:
    return pa.Table.from_batches(list_inputs(str(url), storage).batches, schema=PLAN)


def planned(*rows: dict) -> pa.Table:
    empty = dict.fromkeys(PLAN.names)
    filled = [{**empty, "image_id": image_id(row["uri"]), "path": row["uri"], **row} for row in rows]
    return pa.Table.from_pylist(filled, schema=PLAN)


def fetch(plan: pa.Table, storage: StorageConfig = LOCAL, max_bytes: int = MAX_BYTES) -> list[Fetched]:
    return Fetcher(storage, max_bytes, threads=4).fetch(plan)


def reason(item: Fetched) -> str:
    assert isinstance(item, RejectedImage)
    return str(item.reason)


def pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


# -- plain objects -----------------------------------------------------------------------------------------------------


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


def test_s3_objects_are_one_request_each(s3, monkeypatch):
    bucket = s3.bucket()
    for number in range(20):
        s3.client.put_object(Bucket=bucket, Key=f"{number:02d}.jpg", Body=b"x" * number)
    plan = plan_of(f"s3://{bucket}", s3.storage)
    calls: list[str] = []
    call = S3FileSystem._call_s3

    def counted(self: S3FileSystem, method: str, *args, **kwargs):
        calls.append(method)
        return call(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    assert fetch(plan, s3.storage) == [b"x" * number for number in range(20)]
    assert calls == ["get_object"] * 20


def test_s3_objects_of_unknown_size_are_bounded(s3):
    bucket = s3.bucket()
    for size in (0, MAX_BYTES, MAX_BYTES + 1, 100 * MAX_BYTES):
        s3.client.put_object(Bucket=bucket, Key=f"{size:06d}", Body=b"x" * size)
    plan = plan_of(f"s3://{bucket}", s3.storage)
    plan = plan.set_column(3, PLAN.field("size_bytes"), pa.nulls(len(plan), pa.int64()))
    found = fetch(plan, s3.storage)
    assert found[:2] == [b"", b"x" * MAX_BYTES]
    assert [str(item) for item in found[2:]] == [
        "too_many_bytes: 1001 bytes, more than the 1000 that max_bytes allows"
    ] * 2


def test_a_changed_object_is_fetched_as_it_is_now(s3):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="a.jpg", Body=b"old")
    before = plan_of(f"s3://{bucket}", s3.storage)
    s3.client.put_object(Bucket=bucket, Key="a.jpg", Body=b"newer")
    after = plan_of(f"s3://{bucket}", s3.storage)
    assert before["image_id"] == after["image_id"]
    assert before["etag"] != after["etag"]
    assert fetch(before, s3.storage) == [b"newer"]
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


class _Web(BaseHTTPRequestHandler):
    failures_left = 0

    def do_GET(self) -> None:
        kind, _, query = self.path[1:].partition("?")
        if kind == "flaky" and _Web.failures_left:
            _Web.failures_left -= 1
            kind = "503"
        status = int(kind) if kind.isdigit() else 200
        body = b"x" * 5000 if kind == "large" else f"{kind} {query}".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 (the base class's name)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Keep the tests' output clean."""


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_signed_urls_fetch_and_their_secrets_stay_in_the_plan(web, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.fetch._FIRST_WAIT_S", 0.0)
    _Web.failures_left = 2
    names = ["a.jpg?v=1&X-Amz-Signature=hush", "404?token=hush", "403?sig=hush", "500?sig=hush", "large", "flaky"]
    uris = [f"{web}/{name}" for name in names]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"uri": uri, "etag": "e", "size_bytes": 1}) for uri in uris))
    plan = plan_of(str(tmp_path / "m.jsonl"))
    assert plan["uri"].to_pylist() == [f"{web}/{name}" for name in ("a.jpg?v=1", "404", "403", "500", "large", "flaky")]
    found = fetch(plan)
    assert found[0] == b"a.jpg v=1&X-Amz-Signature=hush"
    assert [reason(item) for item in found[1:5]] == ["not_found", "access_denied", "fetch_failed", "too_many_bytes"]
    assert not any("hush" in str(item) for item in found[1:])
    assert found[5] == b"flaky "


# -- containers --------------------------------------------------------------------------------------------------------


def test_members_of_a_shard_share_requests(tmp_path, monkeypatch):
    members = {f"{number:03d}.jpg": bytes([number]) * (number * 7) for number in range(100)}
    data = pack(members)
    (tmp_path / "a.tar").write_bytes(data)
    plan = plan_of(str(tmp_path / "a.tar"))
    shuffled = plan.take([(number * 37) % 100 for number in range(100)])
    reads: list[int] = []
    cat_file = fsspec.filesystem("file").cat_file

    def counted(self, path: str, start: int, end: int) -> bytes:
        reads.append(end - start)
        return cat_file(path, start=start, end=end)

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", counted)
    assert fetch(shuffled) == [members[f"{(number * 37) % 100:03d}.jpg"] for number in range(100)]
    assert len(reads) == 1
    monkeypatch.setattr("pipeline.storage.fetch._MERGED_BYTES", 4000)
    reads.clear()
    assert fetch(plan) == list(members.values())
    assert len(reads) > 5
    assert max(reads) <= 4000
    monkeypatch.setattr("pipeline.storage.fetch._MERGE_GAP_BYTES", -1)
    reads.clear()
    fetch(plan.slice(1))
    assert sum(reads) == sum(map(len, members.values()))


def test_a_member_that_is_too_large_is_left_out(tmp_path):
    (tmp_path / "a.tar").write_bytes(pack({"a.jpg": b"1", "b.jpg": b"2" * 5000, "c.jpg": b""}))
    found = fetch(plan_of(str(tmp_path / "a.tar")))
    assert (found[0], reason(found[1]), found[2]) == (b"1", "too_many_bytes", b"")


def test_a_shard_that_shrank_or_went_since(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(pack({"a.jpg": b"1" * 100, "b.jpg": b"2" * 100}))
    plan = plan_of(str(path))
    path.write_bytes(path.read_bytes()[:1100])
    assert [item if isinstance(item, bytes) else str(item) for item in fetch(plan)] == [
        b"1" * 100,
        "fetch_failed: the shard changed since it was listed",
    ]
    path.unlink()
    assert [reason(item) for item in fetch(plan)] == ["not_found", "not_found"]


def test_shards_and_parquet_on_s3(s3):
    bucket = s3.bucket()
    members = {f"{number}.jpg": bytes([number]) * 100 for number in range(10)}
    s3.client.put_object(Bucket=bucket, Key="w/ü#1.tar", Body=pack(members))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": list(members.values())}), buffer, row_group_size=3)
    s3.client.put_object(Bucket=bucket, Key="p/a.parquet", Body=buffer.getvalue())
    for prefix in ("w", "p"):
        plan = plan_of(f"s3://{bucket}/{prefix}", s3.storage)
        assert fetch(plan, s3.storage) == list(members.values())


HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_parquet_rows_read_each_row_group_once(tmp_path, monkeypatch):
    values = [{"bytes": bytes([number]) * number, "path": f"{number}.jpg"} for number in range(100)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pa.array(values, HF)}), path, row_group_size=30)
    plan = plan_of(str(path))
    read: list[list[int]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self, *args, **kwargs):
        read.append(kwargs["row_groups"])
        return iter_batches(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    wanted = [95, 3, 29, 28, 4, 90]
    assert fetch(plan.take(wanted)) == [values[number]["bytes"] for number in wanted]
    assert read == [[0], [3]]


def test_parquet_rows_with_every_reason(tmp_path):
    (tmp_path / "far.jpg").write_bytes(b"far")
    values = [
        {"bytes": b"1", "path": None},
        {"bytes": None, "path": "far.jpg"},
        {"bytes": None, "path": None},
        {"bytes": b"x" * 2000, "path": None},
        {"bytes": b"", "path": None},
    ]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pa.array(values, HF)}), path)
    found = fetch(plan_of(str(path)))
    assert found[:2] == [b"1", b"far"]
    assert [reason(item) for item in found[2:4]] == ["empty", "too_many_bytes"]
    assert found[4] == b""
    pq.write_table(pa.table({"jpg": pa.array([b"1", None])}), path)
    assert [item if isinstance(item, bytes) else str(item) for item in fetch(planned(*_rows_of(path, 2)))] == [
        b"1",
        "empty: the row has no bytes",
    ]


def _rows_of(path: Path, count: int) -> list[dict]:
    return [{"uri": f"{path}#{row}", "path": str(path), "offset": row} for row in range(count)]


def test_a_parquet_file_that_is_damaged_after_its_footer_was_written(tmp_path):
    path = tmp_path / "t.parquet"
    values = [os.urandom(200) for _ in range(60)]
    pq.write_table(pa.table({"jpg": values}), path, row_group_size=20, compression="zstd", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with path.open("r+b") as file:
        file.seek(group.data_page_offset)
        file.write(b"\xff" * 64)
    found = fetch(planned(*_rows_of(path, 60)))
    assert found[:20] == values[:20]
    assert {reason(item) for item in found[20:]} == {"unreadable_container"}
    assert [reason(item) for item in fetch(planned(*_rows_of(path, 61)[60:]))] == ["unreadable_container"]
    path.write_bytes(b"no Parquet")
    assert [reason(item) for item in fetch(planned(*_rows_of(path, 1)))] == ["unreadable_container"]


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_fetcher_travels_between_processes_without_connections(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    plan = planned({"uri": f"{tmp_path}/a"})
    fetcher = Fetcher(LOCAL, MAX_BYTES)
    assert fetcher.fetch(plan) == [b"1"]
    assert pickle.loads(pickle.dumps(fetcher)).fetch(plan) == [b"1"]
