"""What an input holds is listed, or its omission is said: names, kinds of folders, containers, columns.

Each case is a file, a folder or a table that people have; beside it stands what is right.
"""

import base64
import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.images.formats import open_header
from pipeline.storage.inputs.file_names import SIGNATURE_BYTES, is_hidden, looks_like_image
from pipeline.storage.inputs.folders import expand_braces
from pipeline.storage.inputs.listing import image_id, list_inputs
from schemas.errors import InputError, RejectedImage, UsageError
from schemas.options.input_options import InputOptions
from schemas.reasons import Reason
from schemas.runs import Counts
from tests.fetching import fetch, plan_of, reason
from tests.listings import LOCAL, listed, rows, tar_bytes, write
from tests.plans import plan_of as make_plan

JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF"
PNG = b"\x89PNG\r\n\x1a\n"


def found_in(url, how: InputOptions = InputOptions()) -> tuple[list[str], dict[str, int], str]:  # noqa: B008
    """Return the uris below ``url``, what was skipped by kind, and the kind of the input."""
    listing = list_inputs(str(url), LOCAL, how=how)
    uris = sorted(row["uri"].removeprefix(f"{url}").lstrip("/") for row in rows(listing))
    return uris, dict(listing.skipped_kinds), listing.kind


# -- names -------------------------------------------------------------------------------------------------------------

LISTED = [
    "_DSC0001.JPG",
    "_MG_1234.CR2",
    "_a/b.jpg",
    "__init__.jpg",
    "-x9_aQ.png",
    "_x9-aQ.png",
    "~photo.jpg",
    "a._b.jpg",
    "SUCCESS.jpg",
    "_SUCCESS.jpg",
    "_metadata.png",
    "thumbs.db.jpg",
    "$folder$.jpg",
    "C:\\photos\\a.jpg",
    "a b .JPG",
    "100%.jpg",
    "%5FDSC.jpg",
    "e\u0301.jpg",
    "\u00e9.jpg",
    "#1.jpg",
    "UPPER.JPEG",
    "double.jpg.jpg",
    "trailing.jpg ",
    "_runs.jpg",
]
HIDDEN = [
    ".a.jpg",
    "._a.jpg",
    ".DS_Store",
    "_SUCCESS",
    "_metadata",
    "_common_metadata",
    "photos_$folder$",
    "Thumbs.db",
    "thumbs.db",
]
HIDDEN_FOLDERS = [".git", "_temporary", "_runs", "_delta_log", "__MACOSX", ".Trash-1000", "lost+found"]


def store_files(kind: str, tmp_path: Path, s3, files: dict[str, bytes]):
    """Write files to a local folder, to memory:// or to a bucket; return the URL and how to reach it."""
    if kind == "local":
        write(tmp_path / "in", files)
        return str(tmp_path / "in"), LOCAL
    if kind == "memory":
        for name, data in files.items():
            fsspec.filesystem("memory").pipe_file(f"/in/{name}", data)
        return "memory://in", LOCAL
    bucket = s3.bucket()
    for name, data in files.items():
        s3.client.put_object(Bucket=bucket, Key=f"in/{name}", Body=data)
    s3.client.put_object(Bucket=bucket, Key="in/empty/", Body=b"")
    return f"s3://{bucket}/in", s3.storage


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_only_names_that_are_known_to_hold_no_data_are_hidden(kind, tmp_path, s3):
    files = dict.fromkeys(LISTED + HIDDEN, JPEG)
    files |= {f"{folder}/{name}": JPEG for folder in HIDDEN_FOLDERS for name in ("a.jpg", "b/c.jpg")}
    url, storage = store_files(kind, tmp_path, s3, files)
    listing = list_inputs(url, storage)
    assert sorted(row["uri"].removeprefix(f"{url}/") for row in rows(listing)) == sorted(LISTED)
    assert listing.skipped_kinds == {"hidden file": len(HIDDEN), "hidden folder": len(HIDDEN_FOLDERS)}


def test_a_hidden_folder_may_itself_be_the_input(tmp_path):
    write(tmp_path, {"_runs/.x/a.jpg": JPEG})
    assert found_in(tmp_path / "_runs/.x")[0] == ["a.jpg"]


@pytest.mark.parametrize("name", ["_metadata", "_SUCCESS"])
def test_a_folder_called_like_a_hidden_file_is_a_folder(tmp_path, name):
    write(tmp_path, {f"{name}/a.jpg": JPEG})
    assert found_in(tmp_path)[0] == [f"{name}/a.jpg"]
    assert is_hidden(name)


# -- what a folder is --------------------------------------------------------------------------------------------------


def parquet_of(columns: dict | pa.Table, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), buffer, **options)
    return buffer.getvalue()


PICTURE = JPEG + b"x" * 300
IMAGES_INSIDE = parquet_of({"image": [PICTURE + os.urandom(5000), PICTURE + os.urandom(5000)]})
SHARD = tar_bytes({"a.jpg": PICTURE * 30, "b.jpg": PICTURE * 30, "a.json": b"{}"})

FOLDERS = [
    ("Parquet and a preview", {"t.parquet": IMAGES_INSIDE, "preview.png": PNG}, "parquet images", 2, {".png": 1}),
    (
        "shards and a cover",
        {"0.tar": SHARD, "1.tar": SHARD, "cover.jpg": JPEG},
        "webdataset",
        4,
        {".jpg": 1, ".json": 2},
    ),
    (
        "photographs and a table",
        {"a.jpg": PICTURE * 99, "b.jpg": PICTURE * 99, "labels.parquet": b"x" * 99},
        "folder",
        2,
        {".parquet": 1},
    ),
    ("photographs and a small tar", {"a.jpg": PICTURE * 99, "old.tar": b"x" * 99}, "folder", 1, {".tar": 1}),
    ("a LICENSE and photographs", {"LICENSE": b"MIT " * 999, "a.jpg": JPEG}, "folder", 1, {"no extension": 1}),
    (
        "checksums and shards",
        {"SHA256SUMS": b"ab " * 9999, "0.tar": SHARD},
        "webdataset",
        2,
        {"no extension": 1, ".json": 1},
    ),
    (
        "a Makefile alone with Parquet",
        {"Makefile": b"all:", "t.pq": IMAGES_INSIDE},
        "parquet images",
        2,
        {"no extension": 1},
    ),
    ("images without extension", {"0a": JPEG, "0b": PNG, "0c": b"damaged"}, "folder", 3, {}),
    (
        "one image without extension among texts",
        {"a": JPEG, "b": b"x", "c": b"y", "d": b""},
        "folder",
        1,
        {"no extension": 3},
    ),
    (
        "images with and without extension",
        {"a.jpg": JPEG, "b": JPEG, "README": b"hello"},
        "folder",
        2,
        {"no extension": 1},
    ),
    ("an image and compressed shards", {"a.jpg": PICTURE * 99, "x.tar.gz": b"x"}, "folder", 1, {".tar.gz": 1}),
    ("upper-case suffixes", {"A.JPG": JPEG, "NOTES.TXT": b"x", "B.TIF": JPEG}, "folder", 2, {".txt": 1}),
    ("empty files", {"a.jpg": b"", "b.tar": b""}, "folder", 1, {".tar": 1}),
]


@pytest.mark.parametrize(("name", "files", "kind", "count", "skipped"), FOLDERS, ids=[case[0] for case in FOLDERS])
def test_a_folder_is_what_nearly_all_of_its_bytes_are(tmp_path, name, files, kind, count, skipped):
    write(tmp_path, files)
    uris, said, what = found_in(tmp_path)
    assert (what, len(uris), said) == (kind, count, skipped)


UNCLEAR = [
    (
        "half and half",
        {"t.parquet": IMAGES_INSIDE, "a.jpg": b"x" * len(IMAGES_INSIDE)},
        "image and .parquet",
        {"images": 1, "parquet": 2},
    ),
    (
        "shards and as many photographs",
        {"0.tar": SHARD, "a.jpg": SHARD, "b.jpg": SHARD},
        "image and .tar",
        {"images": 2, "shards": 2},
    ),
    ("shards and Parquet", {"0.tar": b"x" * 9, "t.parquet": b"x" * 9}, ".tar and .parquet", {}),
    ("all three", {"0.tar": SHARD, "t.parquet": SHARD, "a.jpg": SHARD}, "image and .tar and .parquet", {"images": 1}),
    (
        "a few pictures and their archive",
        {"a.jpg": JPEG, "all.zip": b"x" * 9999},
        "image and compressed",
        {"images": 1},
    ),
]


@pytest.mark.parametrize(("name", "files", "kinds", "chosen"), UNCLEAR, ids=[case[0] for case in UNCLEAR])
def test_a_folder_of_several_kinds_is_an_error_that_names_the_option(tmp_path, name, files, kinds, chosen):
    write(tmp_path, files)
    with pytest.raises(InputError, match=f"holds both {kinds} files .*--input-kind"):
        found_in(tmp_path)
    for kind, count in chosen.items():
        assert len(found_in(tmp_path, InputOptions(kind=kind))[0]) == count


def test_a_large_folder_is_an_error_too_where_its_shards_come_last(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.inputs.listing.BATCH_ROWS", 5)
    write(tmp_path, {f"{number}.jpg": b"x" * 1024 for number in range(20)} | {"z.tar": SHARD, "y.tar": SHARD})
    with pytest.raises(InputError, match=r"holds both image and \.tar files"):
        found_in(tmp_path)
    listing = list_inputs(str(tmp_path), LOCAL, how=InputOptions(kind="images"))
    assert len(rows(listing)) == 20
    assert listing.skipped_kinds == {".tar": 2}


def test_a_folder_of_manifests_and_a_chosen_kind(tmp_path):
    write(tmp_path, {"a.csv": b"uri\n/x.jpg\n", "b.jsonl": b'{"uri": "/y.jpg"}\n', "c.jpg": PICTURE * 99})
    listing = list_inputs(str(tmp_path), LOCAL, how=InputOptions(kind="manifest"))
    assert [row["uri"] for row in rows(listing)] == ["/x.jpg", "/y.jpg"]
    assert listing.skipped_kinds == {".jpg": 1}
    with pytest.raises(InputError, match=r"no shards input at .*: only 1 \.\w+, 1 \.\w+, 1 \.\w+ files"):
        found_in(tmp_path, InputOptions(kind="shards"))


def test_what_was_skipped_stands_in_a_sentence_and_in_the_counts(tmp_path):
    write(tmp_path / "in", {"a.jpg": JPEG, "b.txt": b"", "c.txt": b"", "d.json": b"", ".e": b""})
    counts = make_plan(tmp_path, list_inputs(str(tmp_path / "in"), LOCAL)).counts
    assert counts.skipped_by_kind == {".txt": 2, ".json": 1, "hidden file": 1}
    assert counts.skipped_sentence == "skipped 4 files as no images: 2 .txt, 1 .json, 1 hidden file"
    assert Counts.model_validate({"skipped_files": 3}).skipped_by_kind == {}
    assert Counts().skipped_sentence == ""


def test_first_bytes_say_what_the_decoder_says(shared):
    """Every real odd file whose format is known, or named as unread, looks like an image; TGA and text don't."""
    wrong = []
    for path in sorted((shared / "real" / "odd").rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        data = path.read_bytes()
        try:
            is_image = open_header(data).format not in {"TGA", "SUN"}
        except RejectedImage as error:
            is_image = error.reason not in {Reason.NOT_AN_IMAGE}
        if is_image and not looks_like_image(data[:SIGNATURE_BYTES]):
            wrong.append(path.name)
    assert wrong == []
    assert not any(map(looks_like_image, (b"", b"MIT License", b"#!/bin/sh", b"{}", b"\x1f\x8b", b"PK\3\4", b"PAR1")))


# -- nothing to do that was never done ---------------------------------------------------------------------------------

NOTHING = [
    ("m.csv", b"uri\n", "no images in .*m.csv, read as manifest"),
    ("m.csv", b"uri,label\r\n", "read as manifest"),
    ("m.tsv", b"uri\tx\n", "read as manifest"),
    ("m.jsonl", b"\n\n\r\n", "read as manifest"),
    ("m.jsonl", b"", "read as manifest"),
    ("m.parquet", parquet_of({"uri": pa.array([], pa.string())}), "read as manifest"),
    ("p.parquet", parquet_of({"image": pa.array([], pa.binary())}), "read as parquet images"),
    (
        "s.tar",
        tar_bytes({"a.json": b"{}", "b.cls": b"1", "c.cls": b"1"}),
        r"read as webdataset: only 2 \.cls, 1 \.json files",
    ),
    ("s.tar", tar_bytes({}), "read as webdataset: no row, no member"),
    ("s.tar", tar_bytes({"._a.jpg": b"x"}), "only 1 hidden file"),
    ("s.tar.gz", b"\x1f\x8b", "compressed archives are not read.*unpack"),
    ("s.tgz", b"\x1f\x8b", "unpack"),
    ("s.TAR.GZ", b"\x1f\x8b", "unpack"),
    ("s.tar.zst", b"x", "unpack"),
    ("s.zip", b"PK", "unpack"),
    ("d/s.tar.gz", b"\x1f\x8b", r"only 1 \.tar\.gz files; compressed"),
    ("d/notes.txt", b"", r"only 1 \.txt files; a manifest"),
    ("d/LICENSE", b"MIT", "only 1 no extension files"),
    ("d/.hidden.jpg", b"x", "only 1 hidden file files"),
]


@pytest.mark.parametrize(("name", "content", "said"), NOTHING, ids=[f"{case[0]} {case[2]}" for case in NOTHING])
def test_an_input_without_an_image_is_an_error_that_says_what_is_there(tmp_path, name, content, said):
    write(tmp_path, {name: content})
    with pytest.raises(InputError, match=said) as caught:
        found_in(tmp_path / name.split("/")[0])
    assert "\n" not in str(caught.value)


# -- tar ---------------------------------------------------------------------------------------------------------------


def test_braces_name_shards(tmp_path):
    write(tmp_path, {f"{number:05d}.tar": SHARD for number in range(12)} | {"train/a.tar": SHARD, "val/b.tar": SHARD})
    assert len(found_in(f"{tmp_path}/{{00000..00009}}.tar")[0]) == 20
    assert len(found_in(f"{tmp_path}/{{train,val}}/*.tar")[0]) == 4
    assert len(found_in(f"{tmp_path}/{{train,val}}")[0]) == 4
    with pytest.raises(InputError, match=r"no input at \S+/00012\.tar, which \S+ names"):
        found_in(f"{tmp_path}/{{00010..00020}}.tar")
    write(tmp_path, {"{0..1}.jpg": JPEG})  # a name of its own
    assert found_in(f"{tmp_path}/{{0..1}}.jpg")[2] == "folder"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{00..02}.tar", ["00.tar", "01.tar", "02.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{a,{0..1}}", ["a", "0", "1"]),
        ("{a,a}", ["a"]),
        ("{a}", ["{a}"]),
        ("{}", ["{}"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_those_of_shells(pattern, names):
    assert sorted(expand_braces(pattern)) == sorted(names)


def test_braces_without_end_are_refused():
    with pytest.raises(InputError, match="more than 1,000,000 names"):
        expand_braces("{0..99999999}")


def test_tar_files_in_a_tar_are_read(tmp_path):
    inner = {"n1.tar": tar_bytes({"x.jpg": b"one", "y.txt": b""}), "n2.tar": tar_bytes({"./x.jpg": b"three"})}
    write(
        tmp_path, {"o.tar": tar_bytes({**inner, "z.jpg": b"top", "bad.tar": b"x" * 600, "deep.tar": tar_bytes(inner)})}
    )
    plan = plan_of(str(tmp_path / "o.tar"))
    found = {
        uri.removeprefix(f"{tmp_path}/o.tar#"): item if isinstance(item, bytes) else reason(item)
        for uri, item in zip(plan["uri"].to_pylist(), fetch(plan), strict=True)
    }
    assert found == {
        "n1.tar/x.jpg": b"one",
        "n2.tar/./x.jpg": b"three",
        "z.jpg": b"top",
        "bad.tar": "unreadable_container",
        "deep.tar/n1.tar/x.jpg": b"one",
        "deep.tar/n2.tar/./x.jpg": b"three",
    }


def test_tar_files_in_a_tar_in_a_store_are_read(s3):
    bucket = s3.bucket()
    inner = tar_bytes({f"{number}.jpg": bytes([number]) * 90_000 for number in range(9)})
    s3.client.put_object(Bucket=bucket, Key="o.tar", Body=tar_bytes({"a.tar": inner, "b.tar": inner, "c.jpg": b"c"}))
    assert len(listed(f"s3://{bucket}/o.tar", s3.storage)) == 19


def test_a_tar_that_nests_for_ever_is_one_rejected_input(tmp_path):
    data = tar_bytes({"a.jpg": b"x"})
    for _ in range(40):
        data = tar_bytes({"in.tar": data}, tarfile.USTAR_FORMAT)
    write(tmp_path, {"o.tar": data})
    (row,) = listed(tmp_path / "o.tar")
    assert (row["reason_code"], row["detail"]) == ("unreadable_container", "lies in more than 8 tar files")


def test_of_members_with_one_name_the_last_is_annotated(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for data in (b"first", b"second", b"third"):
            member = tarfile.TarInfo("a.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    write(tmp_path / "in", {"s.tar": buffer.getvalue()})
    plan = make_plan(tmp_path, list_inputs(str(tmp_path / "in/s.tar"), LOCAL))
    assert (plan.counts.listed, plan.counts.duplicates, plan.counts.planned) == (1, 2, 1)


MEMBERS = [
    ("0.img", b"x", True),
    ("0.image", b"x", True),
    ("0.input", b"x", True),
    ("0.IMG", b"x", True),
    ("0.input.jpg", b"x", True),
    ("0.left.png", b"x", True),
    ("a.b/c", JPEG, True),
    ("n01440764/17", PNG, True),
    ("n01440764/18", b"text", False),
    ("0.cls", b"1", False),
    ("__key__", b"0", False),
    ("0.NEF", b"x", True),
    ("0.mpo", b"x", True),
    ("__MACOSX/._0.jpg", b"x", False),
    ("_DSC1.JPG", b"x", True),
    (".0.jpg", b"x", False),
    ("./0.jpg", b"x", True),
    ("0.tar.gz", b"x", False),
    ("a\\b.jpg", b"x", True),
]


@pytest.mark.parametrize(("name", "data", "is_listed"), MEMBERS)
def test_members_of_a_shard_are_listed_or_counted(tmp_path, name, data, is_listed):
    write(tmp_path, {"s.tar": tar_bytes({"other.jpg": b"x", name: data})})
    uris, skipped, _ = found_in(tmp_path / "s.tar")
    assert (f"#{name}" in uris) == is_listed
    assert sum(skipped.values()) == (not is_listed)


def test_links_in_a_shard_are_counted(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        for kind, name in (
            (tarfile.SYMTYPE, "b.jpg"),
            (tarfile.LNKTYPE, "c.jpg"),
            (tarfile.FIFOTYPE, "d"),
            (tarfile.DIRTYPE, "e"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
    write(tmp_path, {"s.tar": buffer.getvalue()})
    assert found_in(tmp_path / "s.tar")[1] == {"link or special file": 3}


# -- links -------------------------------------------------------------------------------------------------------------

LINKS = [
    ("itself", "photos/self.jpg", "not_found"),
    ("a ring", "photos/other.jpg", "not_found"),
    ("nothing", "nowhere.jpg", "not_found"),
    ("below a file", "photos/a.jpg/x.jpg", "not_found"),
]


@pytest.mark.parametrize(("name", "target", "code"), LINKS, ids=[case[0] for case in LINKS])
def test_a_link_that_leads_nowhere_is_one_rejected_input(tmp_path, name, target, code):
    write(tmp_path, {"photos/a.jpg": JPEG})
    (tmp_path / "photos/self.jpg").symlink_to(tmp_path / target)
    (tmp_path / "photos/other.jpg").symlink_to(tmp_path / "photos/self.jpg")
    plan = plan_of(str(tmp_path / "photos"))
    found = dict(zip((Path(uri).name for uri in plan["uri"].to_pylist()), fetch(plan), strict=True))
    assert found["a.jpg"] == JPEG
    assert reason(found["self.jpg"]) == reason(found["other.jpg"]) == code


def test_a_link_to_its_own_folder_is_counted(tmp_path):
    write(tmp_path, {"photos/a.jpg": JPEG})
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    uris, skipped, _ = found_in(tmp_path / "photos")
    assert (uris, skipped) == (["a.jpg"], {"link to a folder": 1})


# -- columns of manifests ----------------------------------------------------------------------------------------------

COLUMNS = [
    "uri", "URI", "Url", "url", "path", "Path", "FILE", "file", "file_name", "File_Name", "FileName", "filepath",
    "image", "Image", "image_path", "img_path", "image_url", " uri", "uri ", "\ufeffuri",
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("column", COLUMNS)
def test_the_column_of_uris_is_found_whatever_its_case(tmp_path, column, suffix):
    path = tmp_path / f"m{suffix}"
    separator = "\t" if suffix == ".tsv" else ","
    if suffix == ".parquet":
        path.write_bytes(parquet_of({column: ["/x.jpg"], "label": ["a"]}))
    elif suffix == ".jsonl":
        path.write_text(json.dumps({column: "/x.jpg", "label": "a"}))
    else:
        path.write_text(f"{column}{separator}label\r\n/x.jpg{separator}a\r\n", encoding="utf-8")
    assert [row["uri"] for row in listed(path)] == ["/x.jpg"]


def test_the_error_lists_what_is_accepted(tmp_path):
    (tmp_path / "m.csv").write_text("name,label\na,b\n")
    with pytest.raises(
        InputError, match="no column uri; it has name, label; accepted in any case: uri, file, path, image"
    ):
        listed(tmp_path / "m.csv")
    listing = list_inputs(str(tmp_path / "m.csv"), LOCAL, how=InputOptions(uri_column="NAME"))
    assert [row["uri"] for row in rows(listing)] == [f"{tmp_path}/a"]
    with pytest.raises(InputError, match="--uri-column 'x': no such column; it has name, label"):
        rows(list_inputs(str(tmp_path / "m.csv"), LOCAL, how=InputOptions(uri_column="x")))


def test_one_of_several_columns_is_chosen(tmp_path):
    (tmp_path / "m.csv").write_text("url,path\n/u.jpg,/p.jpg\n")
    with pytest.raises(InputError, match=r"which is the uri: url, path\?"):
        listed(tmp_path / "m.csv")
    listing = list_inputs(str(tmp_path / "m.csv"), LOCAL, how=InputOptions(uri_column="path"))
    assert [row["uri"] for row in rows(listing)] == ["/p.jpg"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_image_id_is_made_of_the_users_own_id(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    table = pa.table({"uri": ["/x.jpg", "/y.jpg"], "Key": ["k1", "k2"]})
    if suffix == ".parquet":
        path.write_bytes(parquet_of(table))
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    else:
        table.to_pandas().to_csv(path, index=False)
    found = rows(list_inputs(str(path), LOCAL, how=InputOptions(id_column="key")))
    assert [(row["image_id"], row["uri"]) for row in found] == [(image_id("k1"), "/x.jpg"), (image_id("k2"), "/y.jpg")]


def test_a_moved_bucket_is_not_annotated_anew(tmp_path):
    def plan(bucket: str, done=()):
        row = {"uri": f"{bucket}/a.jpg", "id": 7, "etag": "e"}
        (tmp_path / "m.jsonl").write_text(json.dumps(row))
        return make_plan(
            tmp_path, list_inputs(str(tmp_path / "m.jsonl"), LOCAL, how=InputOptions(id_column="id")), done
        )

    first = (
        list_inputs(str(tmp_path / "m.jsonl"), LOCAL, how=InputOptions(id_column="id"))
        if plan("s3://old").slices
        else None
    )
    done = [batch.select(["image_id", "etag", "size_bytes", "modified_at"]) for batch in first.batches]
    assert plan("s3://new", done).counts.already_done == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("uri,id\n/a.jpg,1\n/b.jpg,\n", "row 1 has no id in column id"),
        ("uri,id\n/a.jpg,1\n/b.jpg,1\n", "have one id"),
        ("uri\n/a.jpg\n", "--id-column 'id': no such column; it has uri"),
    ],
)
def test_ids_that_would_lose_an_image_are_refused(tmp_path, text, problem):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=problem):
        make_plan(tmp_path, list_inputs(str(tmp_path / "m.csv"), LOCAL, how=InputOptions(id_column="id")))


@pytest.mark.parametrize("option", ["uri_column", "image_column", "id_column"])
def test_a_column_is_refused_where_the_input_has_none(tmp_path, option):
    write(tmp_path, {"a.jpg": JPEG})
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} 'x': allowed with"):
        list_inputs(str(tmp_path), LOCAL, how=InputOptions(**{option: "x"}))


CELLS = [
    ("size_bytes", "12", 12),
    ("size_bytes", "12.0", 12),
    ("size_bytes", " 12 ", 12),
    ("size_bytes", "12.", 12),
    ("size_bytes", "0", 0),
    ("size_bytes", "", None),
    ("size_bytes", "many", "row 0, column size_bytes: 'many'"),
    ("size_bytes", "12.5", "row 0, column size_bytes"),
    ("size_bytes", "-1", "row 0, column size_bytes"),
    ("size_bytes", "1,000", "row 0, column size_bytes"),
    ("modified_at", "yesterday", "row 0, column modified_at: 'yesterday'"),
    ("modified_at", "31/12/2024", "row 0, column modified_at"),
]


@pytest.mark.parametrize(("column", "cell", "right"), CELLS)
def test_cells_are_read_or_named_with_row_and_column(tmp_path, column, cell, right):
    (tmp_path / "m.csv").write_text(f'uri,etag,{column}\n/x.jpg,e,"{cell}"\n')
    if isinstance(right, str):
        with pytest.raises(InputError, match=right):
            listed(tmp_path / "m.csv")
    else:
        assert listed(tmp_path / "m.csv")[0][column] == right


def test_sizes_that_pandas_made_floats(tmp_path):
    (tmp_path / "m.parquet").write_bytes(
        parquet_of({"uri": ["/a", "/b"], "etag": ["1", "2"], "size_bytes": [12.0, float("nan")]})
    )
    assert [row["size_bytes"] for row in listed(tmp_path / "m.parquet")] == [12, None]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("gs://b/x.jpg", "gs://b/x.jpg"),
        ("gcs://b/x.jpg", "gs://b/x.jpg"),
        ("abfs://c@a/x.jpg", "abfs://c@a/x.jpg"),
        ("sftp://u:pw@h/x.jpg", "sftp://h/x.jpg"),
    ],
)
def test_an_image_whose_package_is_missing_keeps_its_uri(tmp_path, uri, shown):
    (tmp_path / "m.csv").write_text(f"uri\n{uri}\n")
    (row,) = listed(tmp_path / "m.csv")
    assert (row["uri"], row["reason_code"], row["image_id"]) == (shown, "fetch_failed", image_id(shown))
    assert "pw" not in json.dumps(row, default=str)


# -- columns of Parquet files with images ------------------------------------------------------------------------------

BASE64 = base64.b64encode(PICTURE).decode()
PLAIN = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TYPES = [
    ("binary", pa.array([PICTURE])),
    ("large binary", pa.array([PICTURE], pa.large_binary())),
    ("dictionary", pa.array([PICTURE]).dictionary_encode()),
    ("struct", pa.array([{"bytes": PICTURE, "path": None}], PLAIN)),
    ("list of one", pa.array([[PICTURE]], pa.list_(pa.binary()))),
    ("large list of one", pa.array([[PICTURE]], pa.large_list(pa.binary()))),
    ("list of one struct", pa.array([[{"bytes": PICTURE, "path": "x.jpg"}]], pa.list_(PLAIN))),
    ("base64", pa.array([BASE64])),
    ("base64 after a null", pa.array([None, BASE64])),
    ("base64 for URLs", pa.array([BASE64.replace("+", "-").replace("/", "_")])),
    ("base64 without padding", pa.array([BASE64.rstrip("=")])),
    ("base64 in lines", pa.array(["\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76))])),
    ("data url", pa.array([f"data:image/jpeg;base64,{BASE64}"])),
    ("base64 in a dictionary", pa.array([BASE64]).dictionary_encode()),
    ("base64 in large strings", pa.array([BASE64], pa.large_string())),
]


@pytest.mark.parametrize("column", ["image", "Image", "img", "input", "jpg"])
@pytest.mark.parametrize(("name", "values"), TYPES, ids=[case[0] for case in TYPES])
def test_images_are_read_from_every_type_that_holds_bytes(tmp_path, name, values, column):
    (tmp_path / "p.parquet").write_bytes(parquet_of({"label": ["a"] * len(values), column: values}))
    found = fetch(plan_of(str(tmp_path / "p.parquet")))
    assert found[-1] == PICTURE
    assert len(found) == len(values)


@pytest.mark.parametrize(
    ("values", "endings"),
    [
        (
            pa.array([[PICTURE, PICTURE], [], None, [None], [PICTURE]], pa.list_(pa.binary())),
            ["unsupported", "empty", "empty", "empty", PICTURE],
        ),
        (pa.array([BASE64, "not base64!", "", None]), [PICTURE, "not_an_image", b"", "empty"]),
    ],
)
def test_a_cell_that_holds_no_one_image_is_rejected(tmp_path, values, endings):
    (tmp_path / "p.parquet").write_bytes(parquet_of({"image": values}))
    found = fetch(plan_of(str(tmp_path / "p.parquet")))
    assert [item if isinstance(item, bytes) else reason(item) for item in found] == endings


@pytest.mark.parametrize(
    ("values", "kind"),
    [([[1, 2]], "list<element: int64>"), ([1], "int64"), ([0.5], "double"), ([True], "bool")],
)
def test_a_column_that_holds_no_bytes_is_refused_with_its_type(tmp_path, values, kind):
    (tmp_path / "p.parquet").write_bytes(parquet_of({"image": values}))
    with pytest.raises(InputError, match=f"neither a column uri nor image bytes; it has image \\({kind}\\)"):
        listed(tmp_path / "p.parquet")
    with pytest.raises(InputError, match="--image-column 'image' is of type"):
        rows(list_inputs(str(tmp_path / "p.parquet"), LOCAL, how=InputOptions(image_column="image")))


def test_a_chosen_column_is_fetched_and_has_ids_of_its_own(tmp_path):
    path = tmp_path / "p.parquet"
    path.write_bytes(parquet_of({"left": [b"l0", b"l1"], "right/eye": [b"r0", b"r1"], "id": [1, 2]}))
    with pytest.raises(InputError, match=r"several columns could hold the images .*--image-column"):
        listed(path)
    plans = {}
    for column, start in (("left", b"l"), ("right/eye", b"r")):
        listing = list_inputs(str(path), LOCAL, how=InputOptions(image_column=column))
        plans[column] = pa.Table.from_batches(listing.batches)
        assert fetch(plans[column]) == [start + b"0", start + b"1"]
    assert set(plans["left"]["image_id"].to_pylist()).isdisjoint(plans["right/eye"]["image_id"].to_pylist())
    listing = list_inputs(str(path), LOCAL, how=InputOptions(image_column="left", id_column="ID"))
    assert [row["image_id"] for row in rows(listing)] == [image_id("1"), image_id("2")]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_base64_in_a_manifest_is_refused_with_what_to_do(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        path.write_bytes(parquet_of({"path": [BASE64]}))
    else:
        path.write_text(f"image\n{BASE64}\n" if name.endswith("csv") else json.dumps({"image": BASE64}))
    with pytest.raises(InputError, match=r"row 0 holds an image in base64.*Parquet"):
        listed(path)


def test_long_paths_are_no_base64(tmp_path):
    names = [f"/{'datasets/photographs/' * 5}{number}" for number in range(3)]
    (tmp_path / "m.parquet").write_bytes(parquet_of({"image": names}))
    assert [row["uri"] for row in listed(tmp_path / "m.parquet")] == names
