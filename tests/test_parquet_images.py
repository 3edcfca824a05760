"""Parquet files with image bytes, as inputs."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.inputs.listing import list_inputs
from schemas.errors import InputError
from tests.listings import LOCAL, listed, rows, uris, write

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


def test_row_groups_are_known_by_their_first_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.inputs.listing.BATCH_ROWS", 4)
    for name, rows_per_group in (("a", 3), ("b", 4)):
        pq.write_table(pa.table({"jpg": [b"x"] * 7}), tmp_path / f"{name}.parquet", row_group_size=rows_per_group)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nonsense")
    listing = list_inputs(str(tmp_path), LOCAL)
    assert len(rows(listing)) == 15
    assert listing.chunk_starts.tolist() == [0, 3, 6, 7, 11]
