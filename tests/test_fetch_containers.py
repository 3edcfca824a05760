"""Fetching images out of tar shards and Parquet files: right bytes, few large reads, true reasons."""

import io
import os
from itertools import chain
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.inputs.containers import open_parquet
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.inputs.object_reader import Fetched
from pipeline.storage.inputs.parquet_images import read_rows
from tests.fetching import MAX_BYTES, fetch, plan_of, planned, reason
from tests.listings import LOCAL, tar_bytes


def test_members_of_a_shard_share_requests(tmp_path, monkeypatch):
    members = {f"{number:03d}.jpg": bytes([number]) * (number * 7) for number in range(100)}
    data = tar_bytes(members)
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
    monkeypatch.setattr("pipeline.storage.inputs.fetch._MERGED_BYTES", 4000)
    reads.clear()
    assert fetch(plan) == list(members.values())
    assert len(reads) > 5
    assert max(reads) <= 4000
    monkeypatch.setattr("pipeline.storage.inputs.fetch._MERGE_GAP_BYTES", -1)
    reads.clear()
    fetch(plan.slice(1))
    assert sum(reads) == sum(map(len, members.values()))


def test_a_member_that_is_too_large_is_left_out(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({"a.jpg": b"1", "b.jpg": b"2" * 5000, "c.jpg": b""}))
    found = fetch(plan_of(str(tmp_path / "a.tar")))
    assert (found[0], reason(found[1]), found[2]) == (b"1", "too_many_bytes", b"")


def test_a_shard_that_shrank_or_went_since(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes({"a.jpg": b"1" * 100, "b.jpg": b"2" * 100}))
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
    s3.client.put_object(Bucket=bucket, Key="w/ü#1.tar", Body=tar_bytes(members))
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


def in_parts(plan: pa.Table, part_bytes: int, part_rows: int = 1000) -> list[list[Fetched]]:
    fetcher = Fetcher(LOCAL, MAX_BYTES, threads=4)
    parts = list(fetcher.fetch_in_parts(plan, part_bytes, 300, part_rows))
    assert [row for part, _ in parts for row in part["uri"].to_pylist()] == plan["uri"].to_pylist()
    assert all(len(part) == len(found) for part, found in parts)
    return [found for _, found in parts]


def test_parts_hold_about_so_many_bytes(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]) * 100)
    plan = plan_of(str(tmp_path))
    assert [len(part) for part in in_parts(plan, 250)] == [2, 2, 3, 2, 1]
    unknown = plan.set_column(3, plan.schema.field("size_bytes"), pa.nulls(10, pa.int64()))
    assert [len(part) for part in in_parts(unknown, 600)] == [1, 2, 2, 2, 2, 1]
    assert list(chain.from_iterable(in_parts(plan, 10_000))) == fetch(plan)
    assert in_parts(plan.slice(0, 0), 100) == []


def test_parquet_rows_are_streamed_in_parts_from_one_open_file(tmp_path, monkeypatch):
    images = [bytes([number]) * 100 for number in range(50)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"jpg": [*images, None, b"x" * 2000]}), path, row_group_size=20)
    (tmp_path / "plain").write_bytes(b"plain")
    rows = [{"uri": f"{path}#{row}", "path": str(path), "offset": row} for row in range(52)]
    rows[7] |= {"reason_code": "empty", "detail": "by the listing"}
    plan = planned({"uri": f"{tmp_path}/plain", "size_bytes": 5}, *rows, {"uri": f"{tmp_path}/plain", "size_bytes": 5})
    opened: list[Path] = []
    monkeypatch.setattr(
        "pipeline.storage.inputs.fetch.open_parquet",
        lambda fs, path, etag: opened.append(path) or open_parquet(fs, path, etag),
    )
    first, *streamed, last = in_parts(plan, 1000)
    assert first == last == [b"plain"]
    assert [len(part) for part in streamed] == [11, 10, 10, 10, 11]
    found = list(chain.from_iterable(streamed))
    assert found[:7] + found[8:50] == images[:7] + images[8:]
    assert [str(found[row]) for row in (7, 50)] == ["empty: by the listing", "empty: the row has no bytes"]
    assert reason(found[51]) == "too_many_bytes"
    assert opened == [str(path)]
    assert [len(part) for part in in_parts(plan, 1000, part_rows=8)] == [1, 8, 8, 8, 8, 8, 8, 4, 1]
    shuffled = plan.take([3, 1, 20, 2])
    assert in_parts(shuffled, 1000) == [fetch(shuffled)]


def test_a_stream_that_breaks_goes_on_where_it_was(monkeypatch):
    """A store that is neither local nor S3 gets three tries."""
    monkeypatch.setattr("pipeline.storage.inputs.fetch._FIRST_WAIT_S", 0.0)
    images = [bytes([number]) * 100 for number in range(60)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": images}), buffer, row_group_size=20, use_dictionary=False)
    fsspec.filesystem("memory").pipe_file("/b/t.parquet", buffer.getvalue())
    plan = plan_of("memory://b/t.parquet")
    read: list[int] = []
    breaks = [25, 45]

    def broken(parquet, rows, chosen):
        for row, data in read_rows(parquet, rows):
            if row in breaks:
                breaks.remove(row)
                raise OSError(5, "the line broke")
            read.append(row)
            yield row, data

    monkeypatch.setattr("pipeline.storage.inputs.fetch.read_rows", broken)
    assert list(chain.from_iterable(in_parts(plan, 1000))) == images
    assert read == list(range(60))
    breaks[:] = [10, 11, 12]
    found = list(chain.from_iterable(in_parts(plan, 1000)))
    assert found[:12] == images[:12]
    assert {str(item) for item in found[12:]} == {"fetch_failed: the line broke"}
