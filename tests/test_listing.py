"""Every kind of input, listed on local disk, memory:// and S3."""

import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.filesystems import canonical_url, connect, protocol_of, safe_url, store_errors
from pipeline.storage.listing import Listing, image_id, list_inputs
from schemas.config import StorageConfig
from schemas.errors import InputError, StoreError, UsageError
from schemas.tables import PLAN

LOCAL = StorageConfig()
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


def rows(listing: Listing) -> list[dict]:
    return [row for batch in listing.batches for row in batch.to_pylist()]


def listed(url: str, storage: StorageConfig = LOCAL) -> list[dict]:
    return rows(list_inputs(str(url), storage))


def uris(url: str, storage: StorageConfig = LOCAL) -> list[str]:
    return [row["uri"] for row in listed(url, storage)]


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def tar_bytes(members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_image_id_is_the_documented_hash_and_never_changes():
    assert image_id("s3://b/ü.jpg") == hashlib.blake2b("s3://b/ü.jpg".encode(), digest_size=16).hexdigest()
    assert image_id("/a.jpg") == "4f96e8f781648f317ecc48850f4725b0"


# -- URLs --------------------------------------------------------------------------------------------------------------


def test_paths_are_exact_and_local_ones_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert connect("x/../y//z#?.jpg", LOCAL)[1] == f"{tmp_path}/y/z#?.jpg"
    assert connect("file:///a/b%20c", LOCAL)[1] == "/a/b%20c"
    assert connect("s3a://b/k#a?x*::y", LOCAL)[1] == "b/k#a?x*::y"
    assert connect("memory://a/b", LOCAL)[1] == "/a/b"
    assert canonical_url("s3a://b/k") == "s3://b/k"
    assert canonical_url("memory:///a/b") == "memory://a/b"
    assert canonical_url("file:///a/../b") == "/b"
    assert protocol_of("/a/s3://b") == "file"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://u:p@h/x.jpg?id=3&X-Amz-Signature=abc&sig=1", "https://h/x.jpg?id=3"),
        ("https://token@h/x?access_token=1&v=2&X-Amz-Security-Token=q", "https://h/x?v=2"),
        ("s3://key:secret@b/a?token=x", "s3://b/a?token=x"),
        ("sftp://me:pw@h/x@y:z", "sftp://h/x@y:z"),
        ("abfs://c@account/x", "abfs://c@account/x"),
        ("/a/b?token=1", "/a/b?token=1"),
    ],
)
def test_safe_url_drops_secrets_and_nothing_else(url, safe):
    assert safe_url(url) == safe


def test_store_errors_says_one_line_without_secrets():
    def fail(error: Exception) -> str:
        with pytest.raises(StoreError) as caught, store_errors("reading x"):
            raise error
        return str(caught.value)

    assert fail(FileNotFoundError("/a")) == "reading x: not found"
    assert fail(OSError(28, "No space left on device")) == "reading x: No space left on device"
    told = fail(OSError("403, url='https://u:pw@h/x?X-Amz-Credential=AK&a=1&X-Amz-Signature=zz'\nmore"))
    assert told == "reading x: 403, url='https://h/x?a=1&'"
    with pytest.raises(ZeroDivisionError), store_errors("reading x"):
        raise ZeroDivisionError
    with pytest.raises(InputError), store_errors("reading x", InputError):
        raise PermissionError("no")


def test_unknown_protocols_and_missing_packages_are_one_line():
    with pytest.raises(UsageError, match=r"^foo://a: can't use foo://: Protocol not known: foo$"):
        connect("foo://a", LOCAL)
    with pytest.raises(UsageError, match="gcsfs"):
        connect("gs://b/x", LOCAL)


def test_s3_checksums_are_sent_only_where_required_unless_the_environment_says_so(monkeypatch):
    config = connect("s3://b/x", LOCAL)[0].config_kwargs
    assert config["request_checksum_calculation"] == config["response_checksum_validation"] == "when_required"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    config = connect("s3://b/x", LOCAL)[0].config_kwargs
    assert "request_checksum_calculation" not in config
    assert connect("s3://b/x", LOCAL, anonymous=True)[0].anon is True


# -- folders and globs -------------------------------------------------------------------------------------------------

FOLDER = {
    "a.jpg": b"12345",
    "b/c/d.PNG": b"1",
    "b/no_extension": b"",
    "b/x.unknown": b"2",
    "notes.txt": b"",
    "b/meta.json": b"",
    "b/meta2.json": b"",
    ".hidden.jpg": b"",
    "_SUCCESS": b"",
    "_tmp/e.jpg": b"",
    "b/.git/f.jpg": b"",
}
FOUND = ["a.jpg", "b/c/d.PNG", "b/no_extension", "b/x.unknown"]


def check_folder(url: str, storage: StorageConfig) -> None:
    listing = list_inputs(url, storage)
    found = rows(listing)
    assert sorted(row["uri"] for row in found) == [f"{url}/{name}" for name in FOUND]
    assert listing.kind == "folder"
    assert dict(listing.skipped_kinds) == {".txt": 1, ".json": 2}
    assert listing.skipped_files == 3
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
    assert len(uris(f"s3://{bucket}", s3.storage)) == 5
    assert uris(f"s3://{bucket}/in*/a.jpg", s3.storage) == [f"s3://{bucket}/in/a.jpg", f"s3://{bucket}/in2/a.jpg"]
    with pytest.raises(InputError, match=r"neither a file nor a folder; .* end it with \*"):
        list_inputs(f"s3://{bucket}/i", s3.storage)
    with pytest.raises(InputError, match=r"bucket does not exist|neither a file"):
        list_inputs("s3://no-such-bucket-here/x", s3.storage)


def test_s3_pages_and_what_list_and_head_say_agree(s3):
    bucket = s3.bucket()
    names = [f"p/{number:04d}.jpg" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: s3.client.put_object(Bucket=bucket, Key=name, Body=name.encode()), names))
    found = listed(f"s3://{bucket}/p", s3.storage)
    assert [row["uri"] for row in found] == [f"s3://{bucket}/{name}" for name in names]
    (alone,) = listed(f"s3://{bucket}/p/1050.jpg", s3.storage)
    assert {**alone, "modified_at": None} == {**found[1050], "modified_at": None}


def test_globs_list_exactly_what_they_match(tmp_path):
    write(tmp_path, FOLDER)
    root = str(tmp_path)

    def found(pattern: str) -> list[str]:
        return sorted(uri.removeprefix(root + "/") for uri in uris(f"{root}/{pattern}"))

    assert found("*") == [".hidden.jpg", "_SUCCESS", "a.jpg", "notes.txt"]
    assert found("*.jpg") == [".hidden.jpg", "a.jpg"]
    assert found("**/*.jpg") == [".hidden.jpg", "_tmp/e.jpg", "a.jpg", "b/.git/f.jpg"]
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
    monkeypatch.setattr("pipeline.storage.listing.BATCH_ROWS", 200)
    count = {"small": 500, "large": 5_000}
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

    assert peak("large") < 1.1 * peak("small")


# -- manifests ---------------------------------------------------------------------------------------------------------


def manifest(path: Path, columns: dict[str, list]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row, default=str) for row in table.to_pylist()))
    else:
        table.to_pandas().to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_manifest_of_every_format(tmp_path, suffix):
    write(tmp_path, {"in/a.jpg": b"123", "b,c.jpg": b"1"})
    path = manifest(
        tmp_path / f"in/m{suffix}",
        {"width": [1, 2, 3, 4, 5], "uri": ["a.jpg", "../b,c.jpg", None, str(tmp_path / "no.jpg"), "./x/../a.jpg"]},
    )
    listing = list_inputs(str(path), LOCAL)
    found = rows(listing)
    assert listing.kind == "manifest"
    assert [row["uri"] for row in found] == [
        f"{tmp_path}/in/a.jpg",
        f"{tmp_path}/b,c.jpg",
        f"{path}#row=2",
        f"{tmp_path}/no.jpg",
        f"{tmp_path}/in/a.jpg",
    ]
    assert [row["reason_code"] for row in found] == [None, None, "missing_uri", None, None]
    assert [row["size_bytes"] for row in found] == [3, 1, None, None, 3]
    mtime = (tmp_path / "in/a.jpg").stat().st_mtime_ns // 1000
    assert pa.scalar(found[0]["modified_at"], PLAN.field("modified_at").type).value == mtime


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_what_a_manifest_says_of_versions_is_taken(tmp_path, suffix):
    when = datetime(2024, 5, 1, 12, 30, 1, 5, tzinfo=UTC)
    path = manifest(
        tmp_path / f"m{suffix}",
        {"URL": ["s3://b/k", "s3://b/l"], "etag": ['"abc"', "def"], "size_bytes": [7, 8], "modified_at": [when, when]},
    )
    one, two = listed(path)  # no store is asked: there is none
    assert (one["uri"], one["path"], one["etag"], one["size_bytes"]) == ("s3://b/k", "b/k", "abc", 7)
    assert one["modified_at"] == two["modified_at"] == when


def test_a_manifest_on_s3_mixes_stores(tmp_path, s3):
    bucket = s3.bucket()
    write(tmp_path, {"a.jpg": b"12"})
    fsspec.filesystem("memory").pipe_file("/m/b.jpg", b"1")
    s3.client.put_object(Bucket=bucket, Key="d/c#1.jpg", Body=b"123")
    names = [f"{tmp_path}/a.jpg", "memory://m/b.jpg", "c#1.jpg", f"s3a://{bucket}/d/none.jpg", "nope://x/y"]
    names += ["https://u:secret@127.0.0.1:1/x.jpg?v=1&X-Amz-Signature=secret"]
    lines = "\n".join(json.dumps({"uri": name}) for name in names)
    s3.client.put_object(Bucket=bucket, Key="d/m.jsonl", Body=lines.encode())
    found = listed(f"s3://{bucket}/d/m.jsonl", s3.storage)
    assert [row["uri"] for row in found] == [
        f"{tmp_path}/a.jpg",
        "memory://m/b.jpg",
        f"s3://{bucket}/d/c#1.jpg",
        f"s3://{bucket}/d/none.jpg",
        f"s3://{bucket}/d/m.jsonl#row=4",
        "https://127.0.0.1:1/x.jpg?v=1",
    ]
    assert [row["size_bytes"] for row in found] == [2, 1, 3, None, None, None]
    assert [row["reason_code"] for row in found] == [None, None, None, None, "fetch_failed", None]
    assert "nope" in found[4]["detail"]
    assert found[2]["etag"] == hashlib.md5(b"123").hexdigest()
    assert found[5]["path"] == names[5]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("m.csv", "a,b\n1,2\n", "no column uri; it has a, b"),
        ("m.csv", "url,path\n1,2\n", "which is the uri: url, path"),
        ("m.csv", "", "Empty CSV file"),
        ("m.csv", "uri,size_bytes\nx,many\n", "many"),
        ("m.jsonl", '{"uri": "a"}\n{"uri": ', "Expecting value"),
        ("m.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("m.jsonl", '{"uri": "s3://b/a", "modified_at": "yesterday"}', "yesterday"),
        ("m.parquet", "no", "no sound Parquet file"),
    ],
)
def test_a_wrong_manifest_is_one_line(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=problem) as caught:
        listed(path)
    assert "\n" not in str(caught.value)


def test_a_manifest_may_climb_no_higher_than_its_bucket():
    fsspec.filesystem("memory").pipe_file("/b/m.csv", b"uri\n../../x.jpg\n")
    (row,) = listed("memory://b/m.csv")
    assert (row["reason_code"], row["detail"]) == ("fetch_failed", "the relative uri leaves the store")


def test_a_folder_of_parquet_manifests(tmp_path):
    for number in range(2):
        manifest(tmp_path / f"{number}.parquet", {"uri": [f"{number}.jpg"]})
    listing = list_inputs(str(tmp_path), LOCAL)
    assert listing.kind == "manifest"
    assert [row["uri"] for row in rows(listing)] == [f"{tmp_path}/0.jpg", f"{tmp_path}/1.jpg"]


# -- Parquet files with image bytes ------------------------------------------------------------------------------------

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_hugging_face_parquet_with_every_mix_of_nulls(tmp_path):
    write(tmp_path, {"far.jpg": b"1234"})
    images = [
        {"bytes": b"1", "path": "a b.jpg"},
        {"bytes": b"2", "path": None},
        {"bytes": None, "path": "far.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": "z.jpg"},
    ]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pa.array(images, HF), "label": range(6)}), path, row_group_size=4)
    listing = list_inputs(str(path), LOCAL)
    found = rows(listing)
    assert listing.kind == "parquet images"
    assert [(row["uri"].removeprefix(str(tmp_path)), row["offset"], row["reason_code"]) for row in found] == [
        ("/t.parquet#0/a b.jpg", 0, None),
        ("/t.parquet#1", 1, None),
        ("/far.jpg", None, None),
        ("/t.parquet#3", 3, "empty"),
        ("/t.parquet#4", 4, "empty"),
        ("/t.parquet#5/z.jpg", 5, None),
    ]
    assert [row["path"] for row in found] == [f"{tmp_path}/far.jpg" if i == 2 else str(path) for i in range(6)]
    assert found[2]["size_bytes"] == 4


def test_plain_binary_columns(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"thumb": [b"0"], "JPG": [b"1"], "uri": ["x"]}), path)
    assert uris(path) == [f"{path}#0"]
    pq.write_table(pa.table({"whatever": pa.array([b"1", b"2"], pa.large_binary())}), path)
    assert uris(path) == [f"{path}#0", f"{path}#1"]
    pq.write_table(pa.table({"one": [b"1"], "two": [b"2"]}), path)
    with pytest.raises(InputError, match=r"several columns could hold the images \(one, two\)"):
        listed(path)
    pq.write_table(pa.table({"hash": [b"1"], "uri": ["/x.jpg"]}), path)
    assert uris(path) == ["/x.jpg"]
    pq.write_table(pa.table({"one": [1]}), path)
    with pytest.raises(InputError, match="neither a column uri nor image bytes; it has one"):
        listed(path)


def test_a_folder_of_parquet_files_survives_a_damaged_one(tmp_path):
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense")
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "c.parquet")
    found = listed(tmp_path)
    assert [(row["uri"], row["reason_code"]) for row in found] == [
        (f"{tmp_path}/a.parquet#0", None),
        (f"{tmp_path}/b.parquet", "unreadable_container"),
        (f"{tmp_path}/c.parquet#0", None),
    ]


# -- tar shards --------------------------------------------------------------------------------------------------------


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
    assert dict(listing.skipped_kinds) == {".json": 1, ".cls": 1, ".jpg": 1}


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


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_denied_listing_is_one_line_without_secrets(s3, monkeypatch):
    storage = StorageConfig(endpoint_url="http://127.0.0.1:9", profile="no-such-profile")
    with pytest.raises(InputError, match=r"can't list s3://b/x: The config profile \(no-such-profile\)"):
        list_inputs("s3://key:hush@b/x", storage)
