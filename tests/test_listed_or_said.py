"""What an input holds is listed, or its omission is said: names, kinds of folders, containers, columns.

Each case is a file, a folder or a table that people have; beside it stands what is right.
"""

import posixpath
from pathlib import Path

import fsspec
import pytest

from pipeline.images.formats import open_header
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.storage.inputs.file_names import SIGNATURE_BYTES, is_hidden, looks_like_image, suffix_of
from pipeline.storage.inputs.listing import list_inputs
from schemas.errors import InputError, RejectedImage
from schemas.input_options import InputOptions
from schemas.reasons import Reason
from schemas.runs import Counts
from tests.jobs_on import run_annotate
from tests.listings import IMAGES_INSIDE, JPEG, LOCAL, PICTURE, PNG, SHARD, found_in, rows, write
from tests.plans import plan_of as make_plan

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
    assert Counts().duplicates_sentence == ""
    assert Counts(duplicates=1).duplicates_sentence.startswith(
        "1 input is listed again: what is listed twice counts once"
    )
    assert Counts(duplicates=2).duplicates_sentence.startswith("2 inputs are listed again: ")


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


@pytest.mark.parametrize(
    "path", ["a/b.JPG", "a.b/c", "a/.hidden", "a/..x", "a/...", "a/b.", "a/.b.c", ".", "", "a/b.tar.GZ", "é/ü.Ä"]
)
def test_an_extension_is_what_python_takes_for_one(path):
    assert suffix_of(path) == posixpath.splitext(path)[1].lower()
    assert suffix_of(f"https://host/{path}?x=a.png") == posixpath.splitext(path)[1].lower()


def test_a_second_model_in_an_output_is_said_once(tmp_path, capsys):
    write_corpus(tmp_path, 1, seed=1, size_hw=(48, 48))
    first = run_annotate(tmp_path / "images", tmp_path / "out")
    assert "is a new model" not in capsys.readouterr().err
    second = run_annotate(tmp_path / "images", tmp_path / "out", resize="fit")
    line = f"{second.model} is a new model in this output beside {first.model}; readers take --model"
    assert line in capsys.readouterr().err
    run_annotate(tmp_path / "images", tmp_path / "out", resize="fit")
    assert "is a new model" not in capsys.readouterr().err
