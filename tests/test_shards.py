"""WebDataset tar shards, as inputs."""

import hashlib
import tarfile

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage.inputs.listing import list_inputs
from tests.listings import LOCAL, listed, rows, tar_bytes, write


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_lists_its_images_where_their_bytes_are(tmp_path, kind):
    long = "d" * 90 + "/" + "x" * 90 + ".jpg"
    members = {"0.jpg": b"a" * 700, "0.json": b"{}", "./1.PNG": b"", long: b"b" * 3, "0.cls": b"1", "._0.jpg": b"x"}
    data = tar_bytes(members, kind)
    write(tmp_path, {"s#1.tar": data})
    listing = list_inputs(str(tmp_path / "s#1.tar"), LOCAL)
    found = rows(listing)
    assert listing.kind == "webdataset"
    assert [row["uri"] for row in found] == [f"{tmp_path}/s#1.tar#{name}" for name in ("0.jpg", "./1.PNG", long)]
    for row, name in zip(found, ("0.jpg", "./1.PNG", long), strict=True):
        assert data[row["offset"] : row["offset"] + row["size_bytes"]] == members[name]
        assert row["path"] == f"{tmp_path}/s#1.tar"
    assert dict(listing.skipped_kinds) == {".json": 1, ".cls": 1, "hidden file": 1}


def test_shards_on_s3_carry_the_shards_etag(s3):
    bucket = s3.bucket()
    data = tar_bytes({"a.jpg": b"1" * 5000, "b.jpg": b"2"})
    for number in range(3):
        s3.client.put_object(Bucket=bucket, Key=f"w/{number}.tar", Body=data)
    found = listed(f"s3://{bucket}/w", s3.storage)
    assert [row["uri"] for row in found] == [f"s3://{bucket}/w/{i}.tar#{n}.jpg" for i in range(3) for n in "ab"]
    assert {row["etag"] for row in found} == {hashlib.md5(data).hexdigest()}
    assert found == listed(f"s3://{bucket}/w/*.tar", s3.storage)


@pytest.mark.parametrize(
    ("damage", "left", "detail"),
    [
        (lambda data: data[: 512 + 1024 + 512 + 100], 1, "ends inside its member 'b.jpg'"),
        (lambda data: data[: 512 + 1024], 1, "no header and no end mark"),
        (lambda data: data[: 512 + 1024 + 100], 1, "no header and no end mark"),
        (lambda data: data[: 512 + 1024] + b"x" * 512 + data[2048:], 1, "no header and no end mark"),
        (lambda data: b"", 0, "empty file"),
        (lambda data: b"\x1f\x8b" + data[2:], 0, "not a sound tar file"),
    ],
)
def test_a_damaged_shard_lists_what_stands_before_the_damage(tmp_path, damage, left, detail):
    data = tar_bytes({"a.jpg": b"1" * 1000, "b.jpg": b"2" * 1000})
    write(tmp_path, {"s.tar": damage(data), "t.tar": data})
    found = listed(tmp_path)
    assert [row["uri"] for row in found[:left]] == [f"{tmp_path}/s.tar#a.jpg"][:left]
    broken = found[left]
    assert (broken["uri"], broken["reason_code"]) == (f"{tmp_path}/s.tar", "unreadable_container")
    assert detail in broken["detail"]
    assert [row["uri"] for row in found[left + 1 :]] == [f"{tmp_path}/t.tar#a.jpg", f"{tmp_path}/t.tar#b.jpg"]


def test_shards_are_listed_in_order_and_their_other_members_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.prefetch.CHUNK", 3)
    write(
        tmp_path,
        {f"{i:02d}.tar": tar_bytes({f"{j}.{k}": b"1" for j in range(5) for k in ("jpg", "cls")}) for i in range(20)},
    )
    listing = list_inputs(str(tmp_path), LOCAL)
    assert [row["uri"] for row in rows(listing)] == [
        f"{tmp_path}/{i:02d}.tar#{j}.jpg" for i in range(20) for j in range(5)
    ]
    assert dict(listing.skipped_kinds) == {".cls": 100}


@pytest.mark.parametrize(
    ("sizes", "most_bytes", "most_requests"),
    [
        ([3 * 2**20] * 5, 0.02, 6),  # large members are skipped
        ([60_000] * 60, 1.01, 4),  # small ones are read over
        ([60_000, 2 * 2**20, 100, 100, 3 * 2**20, 60_000], 0.1, 5),
    ],
)
def test_a_shard_in_a_store_is_listed_by_few_bytes_or_few_requests(monkeypatch, sizes, most_bytes, most_requests):
    members = {f"{number:03d}.jpg": bytes(size) for number, size in enumerate(sizes)}
    data = tar_bytes(members)
    fsspec.filesystem("memory").pipe_file("/b/s.tar", data)
    read: list[int] = []
    cat_file = MemoryFileSystem.cat_file

    def counted(self, path: str, start: int, end: int) -> bytes:
        read.append(end - start)
        return cat_file(self, path, start=start, end=end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    assert [(row["uri"], row["size_bytes"]) for row in listed("memory://b/s.tar")] == [
        (f"memory://b/s.tar#{name}", len(content)) for name, content in members.items()
    ]
    assert sum(read) <= most_bytes * len(data)
    assert len(read) <= most_requests
