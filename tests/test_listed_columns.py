"""The columns of manifests and of Parquet files with images are found, chosen and read, or the error names them."""

import base64
import json

import pyarrow as pa
import pytest

from pipeline.storage.inputs.listing import image_id, list_inputs
from schemas.errors import InputError, UsageError
from schemas.input_options import InputOptions
from tests.fetching import fetch, plan_of, reason
from tests.listings import (
    JPEG,
    LOCAL,
    PICTURE,
    listed,
    parquet_of,
    rows,
    write,
)
from tests.plans import plan_of as make_plan

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
