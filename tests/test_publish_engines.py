"""What others read of a published table: DuckDB's Iceberg reader, and pyiceberg where everything lies on S3.

DuckDB 2, which camlake uses, has no Iceberg extension yet, so the reader is a DuckDB 1 in an environment of its own:
ICEBERG_PYTHON names its Python, after `python -m venv e && e/bin/pip install 'duckdb<2' duckdb-extension-iceberg
duckdb-extension-avro`. ``.ci/run`` makes one.
"""

import json
import os
import subprocess

import pytest
from pyiceberg.catalog import load_catalog

from jobs.publish import run
from jobs.terminal.console import Screen
from pipeline.outputs import reader
from schemas.options.publish import PublishConfig
from schemas.reasons import Reason
from tests.compacting import age, compact, fill
from tests.fake_lake import MODEL, FakeLake

NAME = "labels.boxes"
BY_DUCKDB = """
import importlib.util, json, sys
from pathlib import Path
import duckdb

con = duckdb.connect()
for name in ("avro", "iceberg"):
    (folder,) = importlib.util.find_spec(f"duckdb_extension_{name}").submodule_search_locations
    (file,) = Path(folder).rglob("*.duckdb_extension")
    con.execute(f"LOAD '{file}'")
for query in sys.argv[2:]:
    rows = con.execute(query.format(table=f"iceberg_scan('{sys.argv[1]}')"))
    print(json.dumps([rows.description and [one[0] for one in rows.description], rows.fetchall()], default=str))
"""


def publish(lake, catalog):
    values = {"out": lake.out, "table": NAME, "endpoint_url": lake.storage.endpoint_url}
    run(PublishConfig.resolve(values | catalog), Screen())


def loaded(lake, catalog):
    endpoint = {"s3.endpoint": lake.storage.endpoint_url} if lake.storage.endpoint_url else {}
    return load_catalog("camlake", uri=catalog["catalog"], warehouse=catalog["warehouse"], **endpoint).load_table(NAME)


def current(lake):
    with reader.open(lake.out, model=MODEL, endpoint_url=lake.storage.endpoint_url) as opened:
        return opened.arrow("boxes")


def by_duckdb(table, *queries):
    """Return the column names and rows of queries on ``{table}``, which is the newest metadata of a table."""
    python = os.environ.get("ICEBERG_PYTHON")
    if not python:
        pytest.skip("no DuckDB with an Iceberg extension: ICEBERG_PYTHON names no Python; .ci/run makes one")
    words = [python, "-c", BY_DUCKDB, table.metadata_location.removeprefix("file://"), *queries]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_duckdb_reads_the_current_rows_after_each_run_and_compaction(tmp_path):
    lake = fill(FakeLake(str(tmp_path / "out")))
    catalog = {"catalog": f"sqlite:///{tmp_path}/catalog.db", "warehouse": str(tmp_path / "warehouse")}
    (columns,) = {tuple(current(lake).column_names)}
    query = f"SELECT {', '.join(columns)} FROM {{table}} ORDER BY image_id, rank, component"

    def same():
        publish(lake, catalog)
        ((names, rows),) = by_duckdb(loaded(lake, catalog), query)
        expected = current(lake).sort_by([(name, "ascending") for name in ("image_id", "rank", "component")])
        assert tuple(names) == columns
        assert rows == [json.loads(json.dumps(list(row.values()), default=str)) for row in expected.to_pylist()]

    same()
    lake.run({"c": "v2", "g": "v1"}, {"d": Reason.EMPTY})
    same()
    compact(lake)
    age(lake)
    lake.run({"k": "v1"})
    same()
    (_, [(n, models)]), (_, [(left,)]) = by_duckdb(
        loaded(lake, catalog),
        "SELECT count(*), count(DISTINCT model) FROM {table}",
        f"SELECT count(*) FROM {{table}} WHERE model = '{MODEL}' AND date >= DATE '2026-01-01'",
    )
    assert (n, models, left) == (len(current(lake)), 1, n)


def test_an_output_and_a_warehouse_on_s3(object_store, tmp_path):
    bucket = object_store.bucket()
    lake = fill(FakeLake(f"s3://{bucket}/out", object_store.storage))
    catalog = {"catalog": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"s3://{bucket}/warehouse"}
    for _ in range(2):
        publish(lake, catalog)
        table = loaded(lake, catalog)
        rows = table.scan().to_arrow().select(current(lake).column_names)
        assert sorted(map(str, rows.to_pylist())) == sorted(map(str, current(lake).to_pylist()))
        assert {task.file.file_path.split("/")[2] for task in table.scan().plan_files()} == {bucket}
        lake.run({"c": "v3", "m": "v1"})
    assert len(loaded(lake, catalog).snapshots()) == 2
