"""``camlake sql``: queries of an output, their results in each format, and what a query can't do."""

import csv
import io
import json
import math
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from jobs.sql import run
from jobs.terminal.console import Screen
from pipeline.outputs import reader
from schemas.errors import InputError, StoreError, UsageError
from schemas.options.sql import SqlConfig
from schemas.reasons import Reason
from tests.fake_lake import MODEL, FakeLake

OTHER = "other-87654321"


def make(folder: Path) -> FakeLake:
    """Return an output in which a was annotated twice and b was rejected later."""
    lake = FakeLake(str(folder / "out"))
    lake.run({"a": "v1", "b": "v1", "c": "v1"}, {"bad": Reason.CORRUPT})
    lake.run({"a": "v2"}, {"b": Reason.EMPTY})
    return lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sql"))


@pytest.fixture
def ask(lake, capfd):
    def ask(query=None, **options):
        run(SqlConfig.resolve({"out": lake.out, "query": query, **options}), Screen())
        return capfd.readouterr()

    return ask


def test_the_views_have_current_rows_only(ask):
    counts = {}
    for view in ("images", "boxes", "heatmaps", "features", "feature_maps", "foreground", "quarantine", "runs"):
        (row,) = json.loads(ask(f"SELECT count(*) AS n FROM {view}", format="json").out)
        counts[view] = row["n"]
    assert counts == {
        "images": 2,
        "boxes": 4,
        "heatmaps": 4,
        "features": 2,
        "feature_maps": 0,
        "foreground": 0,
        "quarantine": 2,
        "runs": 2,
    }
    rows = json.loads(ask("SELECT status, planned, annotated, rejected, boxes FROM runs", format="json").out)
    assert rows[0] == {"status": "complete", "planned": 4, "annotated": 3, "rejected": 1, "boxes": 6}


def test_a_table_is_shown_with_a_note_of_more_rows(ask):
    shown = ask("SELECT uri, etag FROM images ORDER BY uri")
    assert [line.split("│")[1:3] for line in shown.out.splitlines() if "│ " in line] == [
        [" a   ", " v2   "],
        [" c   ", " v1   "],
    ]
    assert shown.err == ""
    assert "only the first 1 rows are shown" in ask("FROM images", rows=1).err


def test_control_characters_of_a_label_do_not_reach_the_terminal(ask):
    shown = ask("SELECT 'red \x1b[31m [bold]' AS label").out
    assert "\x1b" not in shown
    assert r"red \x1b[31m [bold]" in shown


def test_csv_and_json_hold_every_value(ask):
    query = (
        "SELECT 'a,\"b\"\n' AS text, NULL AS none, 1.5::FLOAT AS number, true AS truth, [1, 2] AS list,"
        " {'k': 'v'} AS struct, 'nan'::FLOAT AS nan, DATE '2026-11-30' AS day, '\\x01'::BLOB AS bytes"
    )
    (row,) = json.loads(ask(query, format="json").out)
    assert row == {
        "text": 'a,"b"\n',
        "none": None,
        "number": 1.5,
        "truth": True,
        "list": [1, 2],
        "struct": {"k": "v"},
        "nan": None,
        "day": "2026-11-30",
        "bytes": "AQ==",
    }
    header, values = csv.reader(io.StringIO(ask(query, format="csv").out))
    assert header == list(row)
    told = dict(zip(header, values, strict=True))
    assert math.isnan(float(told.pop("nan")))
    expected = {"text": 'a,"b"\n', "none": "", "number": "1.5", "truth": "true", "list": "[1, 2]"}
    assert told == expected | {"struct": '{"k": "v"}', "day": "2026-11-30", "bytes": "AQ=="}
    assert json.loads(ask("SELECT 1 AS x WHERE false", format="json").out) == []
    assert ask("SELECT 1 AS x WHERE false", format="csv").out.strip('"\n') == "x"


def test_a_file_has_the_format_of_its_name(ask, tmp_path):
    said = ask("SELECT uri, heat FROM heatmaps JOIN images USING (image_id)", to=str(tmp_path / "m.parquet")).out
    assert said == f"{tmp_path}/m.parquet: 4 rows\n"
    table = pq.read_table(tmp_path / "m.parquet")
    assert table["heat"].to_pylist() == [[0, 51, 102, 153, 204, 255]] * 4
    ask("SELECT 1 AS x", to=str(tmp_path / "x.csv"))
    assert (tmp_path / "x.csv").read_text().split() == ['"x"', "1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parquet", "x.csv"]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_query_that_fails_while_its_rows_stream_is_one_line(ask, kind):
    with pytest.raises(UsageError, match=r"^SQL: Conversion Error.*Could not convert string '[a-z]' to INT32"):
        ask("SELECT uri::INT AS n FROM images", format=kind)


def test_a_failing_query_leaves_no_file(ask, tmp_path):
    with pytest.raises(UsageError, match="boom"):
        ask("SELECT CASE WHEN uri = 'c' THEN error('boom') END AS x FROM images", to=str(tmp_path / "x.csv"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT 'x'::INT AS n FROM images", "SQL: Conversion Error: Could not convert string 'x' to INT32"),
        ("SELEC 1", 'SQL: Parser Error: syntax error at or near "SELEC"'),
        ("SELECT nothing FROM boxes", 'SQL: Binder Error: Referenced column "nothing" not found'),
        ("SELECT 1; SELECT 2", "SQL: SELECT, SELECT; allowed: one SELECT"),
        ("", "allowed: one of a query"),
        ("--", "SQL: no statement; allowed: one SELECT"),
        ("COPY boxes TO 'x.csv'", "SQL: COPY; allowed"),
        ("EXPLAIN ANALYZE COPY boxes TO 'x.csv'", "SQL: EXPLAIN; allowed"),
        ("DROP VIEW boxes", "SQL: DROP; allowed"),
        ("SET enable_external_access = true", "SQL: SET; allowed"),
        ("SELECT * FROM read_csv('/etc/passwd')", "SQL: Permission Error"),
        ("SELECT * FROM glob('/*')", "SQL: Permission Error"),
        ("SELECT * FROM '/etc/passwd'", "SQL: Catalog Error"),
        ("SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '/tmp')", "SQL: Invalid Input"),
    ],
)
def test_sql_that_is_wrong_or_would_write_is_refused_in_one_line(ask, query, said):
    with pytest.raises(UsageError) as raised:
        ask(query)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "allowed: one of a query"),
        ({"query": "SELECT 1", "shell": True}, "allowed: one of a query"),
        ({"query": "SELECT 1", "to": "x"}, "--to 'x': allowed: a name that ends with .csv"),
        ({"query": "SELECT 1", "format": "parquet"}, "--format parquet: allowed: together with --to"),
        ({"query": "SELECT 1", "join": "metadata.csv"}, "--join 'metadata.csv': allowed: NAME=FILE"),
        ({"query": "SELECT 1", "model": "x-1"}, f"model 'x-1': this output has {MODEL}"),
        ({"query": "SELECT 1", "join": "boxes=README.md"}, "--join boxes=README.md: allowed: a file that ends with"),
        ({"query": "SELECT 1", "join": "a=x.csv,A=y.csv"}, "--join 'a=x.csv,A=y.csv': allowed: each NAME once"),
        ({"ddl": "duckdb", "rows": 3}, "--rows: allowed with a query or --shell, not with --ddl"),
        ({"ddl": "athena"}, "--ddl athena: Athena reads s3:// only"),
    ],
)
def test_wrong_options_are_said(ask, options, said):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        ask(**options)


def test_the_output_is_no_place_for_a_result(ask, lake, tmp_path):
    with pytest.raises(UsageError, match="lies inside the output"):
        ask("SELECT 1 AS x", to=f"{lake.out}/boxes/x.parquet")
    with pytest.raises(UsageError, match="no such folder"):
        ask("SELECT 1 AS x", to=str(tmp_path / "none" / "x.csv"))
    with pytest.raises(StoreError, match="no camlake output here"):
        ask("SELECT 1", out=str(tmp_path))


def test_own_files_are_joined_and_nothing_else(ask, tmp_path):
    (tmp_path / "people.csv").write_text("uri,owner\na,Ann\nc,Cy\n")
    rows = ask(
        "SELECT owner, uri FROM images JOIN people USING (uri) ORDER BY owner",
        join=f"people={tmp_path}/people.csv",
        format="csv",
    ).out
    assert list(csv.reader(rows.splitlines())) == [["owner", "uri"], ["Ann", "a"], ["Cy", "c"]]
    with pytest.raises(InputError, match=r"--join .*none.csv: no such file"):
        ask("SELECT 1", join=f"x={tmp_path}/none.csv")
    with pytest.raises(UsageError, match="runs is a table of the output"):
        ask("SELECT 1", join=f"runs={tmp_path}/people.csv")


def test_models_are_never_mixed_unasked(tmp_path, capfd):
    lake = make(tmp_path)
    lake.run({"a": "v1"}, model=OTHER)
    query = "SELECT count(*) AS n FROM images"

    def count(**options):
        run(SqlConfig.resolve({"out": lake.out, "query": query, "format": "json", **options}), Screen())
        return json.loads(capfd.readouterr().out)[0]["n"]

    with pytest.raises(UsageError, match=rf"--model is missing: .* has {OTHER}, {MODEL}; allowed"):
        count()
    assert (count(model=MODEL), count(model=OTHER), count(model="*")) == (2, 1, 3)
    with reader.open(lake.out) as both:
        for read in (lambda: both.sql("FROM boxes"), lambda: both.arrow("boxes"), both.connection):
            with pytest.raises(UsageError, match="model is missing"):
                read()
        assert (len(both.arrow("boxes", model=OTHER)), len(both.arrow("boxes", model="*"))) == (2, 6)
    with reader.open(lake.out, model=OTHER) as one:
        assert one.sql("SELECT count(*) FROM images").fetchall() == [(1,)]
        assert len(one.arrow("boxes")) == 2
        with pytest.raises(UsageError, match=f"model '{MODEL}': this output has {OTHER}"):
            one.arrow("boxes", model=MODEL)
    with pytest.raises(UsageError, match="model 'x': this output has"):
        reader.open(lake.out, model="x")


def test_the_shell_goes_on_after_a_wrong_query(ask, monkeypatch):
    text = "SELECT count(*) AS n\nFROM images;\nSELEC 1;\nSELECT 7 AS seven;\nSELECT 8"
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    shown = ask(shell=True, format="csv")
    assert shown.out.split() == ['"n"', "2", '"seven"', "7"]
    assert 'syntax error at or near "SELEC"' in shown.err
    assert "has no ; at its end" in shown.err


def test_a_store_is_queried_as_the_disk_is(tmp_path):
    lake = FakeLake("memory://sql/out")
    lake.run({"a": "v1"})
    run(SqlConfig.resolve({"out": lake.out, "query": "FROM images", "to": f"{tmp_path}/x.parquet"}), Screen())
    assert pq.read_table(tmp_path / "x.parquet")["uri"].to_pylist() == ["a"]
    run(SqlConfig.resolve({"out": lake.out, "query": "FROM images", "to": "memory://sql/x.csv"}), Screen())
    assert lake.fs.cat_file("/sql/x.csv").startswith(b'"image_id"')
    with pytest.raises(UsageError, match="lies inside the output"):
        run(SqlConfig.resolve({"out": lake.out, "query": "FROM images", "to": f"{lake.out}/x.csv"}), Screen())
    query = {"query": "SELECT own.uri FROM own JOIN images USING (uri)", "join": "own=memory://sql/x.csv"}
    run(SqlConfig.resolve({"out": lake.out, "to": f"{tmp_path}/y.csv", **query}), Screen())
    assert (tmp_path / "y.csv").read_text().split() == ['"uri"', '"a"']


def test_plain_duckdb_reads_an_output_that_rejected_nothing(tmp_path):
    lake = FakeLake(str(tmp_path / "out"))
    lake.run({"a": "v1"})
    globs = {name: f"'{lake.out}/{name}/**/*.parquet'" for name in ("images", "quarantine", "boxes")}
    query = reader.CURRENT_ROWS_SQL.format(table=globs["boxes"], **globs)
    assert duckdb.sql(f"SELECT count(*) FROM ({query})").fetchall() == [(2,)]
    assert duckdb.sql(f"SELECT count(*) FROM {globs['quarantine']}").fetchall() == [(0,)]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: data[:4] + b"\xff" * 60 + data[64:]],
    ids=["cut off", "a page"],
)
@pytest.mark.parametrize("options", [{}, {"format": "csv"}], ids=["table", "csv"])
def test_a_damaged_file_is_no_wrong_query(tmp_path, damage, options):
    lake = make(tmp_path)
    for file in Path(lake.out).glob("boxes/**/*.parquet"):
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(StoreError, match=r"can't be read: .*`camlake verify` says what is damaged"):
            run(SqlConfig.resolve({"out": lake.out, "query": "SELECT * FROM boxes", **options}), Screen())
