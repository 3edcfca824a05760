"""Manifests of every format, as inputs."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.inputs.listing import list_inputs
from schemas.errors import InputError
from schemas.tables import PLAN
from tests.listings import LOCAL, listed, rows, write


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
