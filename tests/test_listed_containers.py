"""Tar files and links in an input are listed, or said; an input without an image is an error."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.storage.inputs.folders import expand_braces
from pipeline.storage.inputs.listing import list_inputs
from schemas.errors import InputError
from tests.fetching import fetch, plan_of, reason
from tests.listings import JPEG, LOCAL, PNG, SHARD, found_in, listed, parquet_of, tar_bytes, write
from tests.plans import plan_of as make_plan

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
