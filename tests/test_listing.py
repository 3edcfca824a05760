"""Folders, prefixes and globs, listed on local disk, memory:// and S3."""

import hashlib
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from pipeline.storage.inputs.folders import iter_objects
from pipeline.storage.inputs.listing import image_id, list_inputs
from schemas.errors import InputError, UsageError
from schemas.options.config import StorageConfig
from schemas.tables import PLAN
from tests.listings import LOCAL, listed, rows, uris, write

WEIRD_NAMES = [
    "ünï cödé 猫.jpg",
    "hash#tag.jpg",
    "question?mark.jpg",
    "per%20cent.jpg",
    "do..ts.jpg",
    "quo'te\"s.jpg",
    "new\nline.jpg",
    "star*[1].jpg",
    "a::b.jpg",
    "plus+and&.jpg",
    "tilde~.jpg",
    "v?versionId.jpg",
    "back\\slash.jpg",
]


def test_image_id_is_the_documented_hash_and_never_changes():
    assert image_id("s3://b/ü.jpg") == hashlib.blake2b("s3://b/ü.jpg".encode(), digest_size=16).hexdigest()
    assert image_id("/a.jpg") == "4f96e8f781648f317ecc48850f4725b0"


PNG = b"\x89PNG\r\n\x1a\n"
FOLDER = {
    "a.jpg": b"12345",
    "b/c/d.PNG": b"1",
    "b/no_extension": PNG,
    "b/LICENSE": b"Copyright",
    "b/x.unknown": b"2",
    "notes.txt": b"",
    "b/meta.json": b"",
    "b/meta2.json": b"",
    ".hidden.jpg": b"",
    "_SUCCESS": b"",
    "_tmp/e.jpg": b"",
    "b/.git/f.jpg": b"",
    "b/.git/g.jpg": b"",
}
FOUND = ["_tmp/e.jpg", "a.jpg", "b/c/d.PNG", "b/no_extension", "b/x.unknown"]
SKIPPED = {".txt": 1, ".json": 2, "no extension": 1, "hidden file": 2, "hidden folder": 1}


def check_folder(url: str, storage: StorageConfig) -> None:
    listing = list_inputs(url, storage)
    found = rows(listing)
    assert sorted(row["uri"] for row in found) == [f"{url}/{name}" for name in FOUND]
    assert listing.kind == "folder"
    assert dict(listing.skipped_kinds) == SKIPPED
    assert listing.skipped_files == 7
    sizes = {row["uri"].removeprefix(url): row["size_bytes"] for row in found}
    assert sizes["/a.jpg"] == 5
    assert all(row["offset"] is row["reason_code"] is row["classes"] is None for row in found)
    assert all(row["modified_at"].tzinfo is not None for row in found)


def test_a_local_folder(tmp_path):
    write(tmp_path, FOLDER)
    check_folder(str(tmp_path), LOCAL)
    (first,) = [row for row in listed(f"{tmp_path}/") if row["uri"].endswith("a.jpg")]
    status = (tmp_path / "a.jpg").stat()
    assert first["etag"] is None
    assert pa.scalar(first["modified_at"], PLAN.field("modified_at").type).value == status.st_mtime_ns // 1000
    assert first["path"] == first["uri"] == str(tmp_path / "a.jpg")
    assert first["image_id"] == image_id(first["uri"])


def test_a_memory_folder():
    fs = fsspec.filesystem("memory")
    for name, data in FOLDER.items():
        fs.pipe_file(f"/bucket/in/{name}", data)
    check_folder("memory://bucket/in", LOCAL)
    assert [row["path"] for row in listed("memory:///bucket/in/b/c")] == ["/bucket/in/b/c/d.PNG"]


def test_an_s3_prefix(s3):
    bucket = s3.bucket()
    for name, data in FOLDER.items():
        s3.client.put_object(Bucket=bucket, Key=f"in/{name}", Body=data)
    s3.client.put_object(Bucket=bucket, Key="in/b/", Body=b"")
    s3.client.put_object(Bucket=bucket, Key="in2/a.jpg", Body=b"")
    check_folder(f"s3://{bucket}/in", s3.storage)
    found = {row["path"]: row for row in listed(f"s3://{bucket}/in/", s3.storage)}
    assert found[f"{bucket}/in/a.jpg"]["etag"] == hashlib.md5(b"12345").hexdigest()
    assert len(uris(f"s3://{bucket}", s3.storage)) == 6
    assert uris(f"s3://{bucket}/in*/a.jpg", s3.storage) == [f"s3://{bucket}/in/a.jpg", f"s3://{bucket}/in2/a.jpg"]
    with pytest.raises(InputError, match=r"neither a file nor a folder; .* end it with \*"):
        list_inputs(f"s3://{bucket}/i", s3.storage)
    with pytest.raises(InputError, match=r"bucket does not exist|neither a file"):
        list_inputs("s3://no-such-bucket-here/x", s3.storage)


def test_folders_of_an_asynchronous_store_are_listed_side_by_side(tmp_path):
    write(tmp_path, {f"{a}/{b}/{c}.jpg": b"x" for a in range(5) for b in range(4) for c in range(3)} | FOLDER)
    fs = AsyncFileSystemWrapper(fsspec.filesystem("file"))
    found = list(iter_objects(fs, str(tmp_path), str(tmp_path), Counter()))
    expected = list(iter_objects(fsspec.filesystem("file"), str(tmp_path), str(tmp_path), Counter()))
    assert sorted(entry[:4] for entry in found) == sorted(entry[:4] for entry in expected)
    assert len(found) == 60 + 9


def test_globs_list_exactly_what_they_match(tmp_path):
    write(tmp_path, FOLDER)
    root = str(tmp_path)

    def found(pattern: str) -> list[str]:
        return sorted(uri.removeprefix(root + "/") for uri in uris(f"{root}/{pattern}"))

    assert found("*") == [".hidden.jpg", "_SUCCESS", "a.jpg", "notes.txt"]
    assert found("*.jpg") == [".hidden.jpg", "a.jpg"]
    assert found("**/*.jpg") == [".hidden.jpg", "_tmp/e.jpg", "a.jpg", "b/.git/f.jpg", "b/.git/g.jpg"]
    assert found("b/*.json") == ["b/meta.json", "b/meta2.json"]
    assert found("[ab]/meta?.json") == ["b/meta2.json"]
    with pytest.raises(InputError, match="empty"):
        found("*.tif")


@pytest.mark.parametrize("name", WEIRD_NAMES)
def test_weird_local_names_are_data(tmp_path, name):
    write(tmp_path, {name: b"x"})
    (row,) = listed(tmp_path)
    assert row["path"] == row["uri"] == f"{tmp_path}/{name}"
    assert listed(tmp_path / name) == [row]


def test_weird_s3_keys_are_data(object_store):
    s3, bucket = object_store, object_store.bucket()
    keys = [f"k/{name}" for name in WEIRD_NAMES] + ["k/up/../x.jpg", "k//double.jpg", "k/a b/ c.jpg"]
    keys = [key for key in keys if s3.name != "moto" or "\n" not in key]  # moto has no such keys
    for key in keys:
        s3.client.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert sorted(row["path"] for row in listed(f"s3://{bucket}/k", s3.storage)) == sorted(
        f"{bucket}/{k}" for k in keys
    )
    for key in keys:
        assert uris(f"s3://{bucket}/{key}", s3.storage) == [f"s3://{bucket}/{key}"], key


def test_names_that_are_not_utf8_are_rejected_with_their_bytes(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jpg")).touch()
    (row,) = listed(tmp_path)
    assert row["uri"] == f"{tmp_path}/bad\\xff.jpg"
    assert (row["reason_code"], row["detail"]) == ("bad_name", "its name is not valid UTF-8")


def test_links_and_pipes(tmp_path):
    write(tmp_path, {"in/a.jpg": b"abc", "other/b.jpg": b""})
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "in/a.jpg")
    (tmp_path / "in/broken.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "in/folder").symlink_to(tmp_path / "other")
    os.mkfifo(tmp_path / "in/pipe.jpg")
    listing = list_inputs(str(tmp_path / "in"), LOCAL)
    assert {Path(row["uri"]).name: row["size_bytes"] for row in rows(listing)} == {
        "a.jpg": 3,
        "link.jpg": 3,
        "broken.jpg": None,
    }
    assert dict(listing.skipped_kinds) == {"link to a folder": 1, "special file": 1}


def test_nothing_to_list_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="neither a file nor a folder"):
        list_inputs(str(tmp_path / "no"), LOCAL)
    with pytest.raises(InputError, match="it is empty"):
        list_inputs(str(tmp_path), LOCAL)
    write(tmp_path, {"a.csv": b"", "b.txt": b""})
    with pytest.raises(InputError, match=r"only 1 \.\w+, 1 \.\w+ files; a manifest must be named itself"):
        list_inputs(str(tmp_path), LOCAL)
    with pytest.raises(InputError, match="is no image; allowed files"):
        list_inputs(str(tmp_path / "b.txt"), LOCAL)
    write(tmp_path, {"c.tar": b"", "d.parquet": b""})
    with pytest.raises(InputError, match=r"holds both \.tar and \.parquet"):
        list_inputs(str(tmp_path), LOCAL)


def test_shards_beside_images_are_counted_not_listed(tmp_path):
    write(tmp_path, {"a.tar": b"", "x.jpg": b"", "z.tar": b""})
    listing = list_inputs(str(tmp_path), LOCAL)
    assert len(rows(listing)) == 1
    assert dict(listing.skipped_kinds) == {".tar": 2}


def test_memory_does_not_grow_with_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.inputs.listing.BATCH_ROWS", 200)
    monkeypatch.setattr("pipeline.storage.inputs.folders._STAT_CHUNK", 4)
    count = {"small": 800, "large": 4_000}
    for name, files in count.items():
        (tmp_path / name).mkdir()
        for number in range(files):
            (tmp_path / name / f"{number}.jpg").touch()

    def peak(name: str) -> int:
        tracemalloc.start()
        listing = list_inputs(str(tmp_path / name), LOCAL)
        total = sum(len(batch) for batch in listing.batches)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == count[name]
        return highest

    assert peak("large") < 1.2 * peak("small")


def test_a_denied_listing_is_one_line_without_secrets(s3, monkeypatch):
    storage = StorageConfig(endpoint_url="http://127.0.0.1:9", profile="no-such-profile")
    with pytest.raises(InputError, match=r"can't list s3://b/x: The config profile \(no-such-profile\)"):
        list_inputs("s3://b/x", storage)
    with pytest.raises(UsageError, match=r"^s3://b/x: a key and a secret can't stand in the URL of a bucket"):
        list_inputs("s3://key:hush@b/x", storage)
