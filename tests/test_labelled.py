"""Labelled images: what is listed, under which class, and what is refused with one line."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.truth.labelled_images import read_label_names, read_labelled, split_by_hash
from schemas.errors import InputError, UsageError
from schemas.options.config import StorageConfig

STORAGE = StorageConfig()


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return str(folder)


def by_name(images):
    plan = images.plan
    return {
        uri.rpartition("/")[2]: tuple(ids)
        for uri, ids in zip(plan["uri"].to_pylist(), plan["classes"].to_pylist(), strict=True)
    }


def test_a_folder_is_a_class(tmp_path):
    url = files(tmp_path, "fish/a.jpg", "fish/deep/b.png", "cat/c.jpg", "cat/notes.txt")
    images = read_labelled(url, STORAGE)
    assert images.labels == ("cat", "fish")
    assert by_name(images) == {"a.jpg": (1,), "b.png": (1,), "c.jpg": (0,)}
    assert images.counts().tolist() == [1, 2]
    assert not images.multi_label
    assert images.plan["image_id"].to_pylist() == sorted(images.plan["image_id"].to_pylist())


def test_an_image_in_no_class_folder(tmp_path):
    with pytest.raises(UsageError, match=r"'loose.jpg' lies in no class's folder"):
        read_labelled(files(tmp_path, "fish/a.jpg", "loose.jpg"), STORAGE)


def test_a_csv_names_uris_and_labels(tmp_path):
    files(tmp_path, "a.jpg", "b.jpg")
    table = tmp_path / "train.csv"
    table.write_text('label,uri\n10,a.jpg\n9,b.jpg\n10,a.jpg\n"9",sub/c.jpg\n')
    images = read_labelled(str(table), STORAGE)
    assert images.labels == ("9", "10")
    assert by_name(images) == {"a.jpg": (1,), "b.jpg": (0,), "c.jpg": (0,)}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_several_labels_an_image(tmp_path, kind):
    files(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    path = tmp_path / f"train.{kind}"
    if kind == "csv":
        path.write_text("uri,class_name\na.jpg,cat; dog\nb.jpg,\nc.jpg,ant\nc.jpg,dog\n")
    else:
        cells = [["cat", "dog"], [], ["ant"], ["dog"]]
        pq.write_table(pa.table({"uri": ["a.jpg", "b.jpg", "c.jpg", "c.jpg"], "label": cells}), path)
    images = read_labelled(str(path), STORAGE)
    assert images.multi_label
    assert images.labels == ("ant", "cat", "dog")
    assert by_name(images) == {"a.jpg": (1, 2), "b.jpg": (), "c.jpg": (0, 2)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uri,kind\na.jpg,cat\n", "no column label or class_name; it has uri, kind"),
        ("uri,label\na.jpg,cat\nb.jpg,\n", r"b.jpg' has no label"),
        ("uri,label\na.jpg,cat\na.jpg,dog\n", "has the labels 'cat' and 'dog'"),
    ],
)
def test_a_table_that_does_not_say_what_is_on_an_image(tmp_path, text, said):
    files(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_labelled(str(tmp_path / "train.csv"), STORAGE)


def test_validation_speaks_of_the_same_classes(tmp_path):
    train = read_labelled(files(tmp_path / "train", "cat/a.jpg", "dog/b.jpg"), STORAGE)
    val = read_labelled(files(tmp_path / "val", "dog/c.jpg"), STORAGE, train, "--val")
    assert (val.labels, by_name(val), val.missing()) == (("cat", "dog"), {"c.jpg": (1,)}, ["cat"])
    with pytest.raises(UsageError, match=r"--val .*'emu' is none of the 2 classes, like 'cat'"):
        read_labelled(files(tmp_path / "val", "emu/d.jpg"), STORAGE, train, "--val")


def test_a_file_of_names_gives_the_order(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("dog\ncat\nemu\n\n")
    labels = read_label_names(str(names), STORAGE)
    assert labels == ("dog", "cat", "emu")
    images = read_labelled(files(tmp_path / "train", "cat/a.jpg", "dog/b.jpg"), STORAGE, labels)
    assert (images.labels, images.missing()) == (labels, ["emu"])
    names.write_text("dog\n\ncat\n")
    with pytest.raises(UsageError, match="an empty name in place 2 of 3"):
        read_label_names(str(names), STORAGE)
    names.write_text('["dog", "dog"]')
    with pytest.raises(UsageError, match="'dog' stands twice"):
        read_label_names(str(names), STORAGE)


def test_other_inputs_are_refused(tmp_path):
    with pytest.raises(InputError, match="no input at"):
        read_labelled(str(tmp_path / "none"), STORAGE)
    with pytest.raises(UsageError, match=r"webdataset; allowed: a folder with a folder for each class"):
        read_labelled(files(tmp_path, "shard.tar"), STORAGE)


def test_the_split_is_the_same_whatever_else_there_is(tmp_path):
    names = [f"{label}/{i}.jpg" for label in ("cat", "dog") for i in range(100)]
    few = split_by_hash(read_labelled(files(tmp_path, *names), STORAGE), 0.3)
    assert len(few[0]) + len(few[1]) == 200
    assert 40 <= len(few[1]) <= 80
    more = split_by_hash(read_labelled(files(tmp_path, "dog/more.jpg"), STORAGE), 0.3)
    for before, after in zip(few, more, strict=True):
        assert set(by_name(before)) <= set(by_name(after))
    assert len(split_by_hash(few[0], 0.0)[1]) == 0


def test_the_digest_changes_with_labels_and_images(tmp_path):
    first = read_labelled(files(tmp_path, "cat/a.jpg", "dog/b.jpg"), STORAGE)
    assert read_labelled(str(tmp_path), STORAGE).digest() == first.digest()
    assert len({first.digest(), read_labelled(files(tmp_path, "dog/c.jpg"), STORAGE).digest()}) == 2
    (tmp_path / "dog").rename(tmp_path / "emu")
    assert read_labelled(str(tmp_path), STORAGE).labels == ("cat", "emu")
    assert np.array_equal(read_labelled(str(tmp_path), STORAGE).counts(), [1, 2])
