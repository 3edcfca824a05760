"""The SQL for other engines: DuckDB and Spark run it, sqlglot parses it for Trino and Athena."""

import shutil

import deltalake
import duckdb
import numpy as np
import pyarrow as pa
import pytest
import sqlglot

from pipeline.outputs import reader
from pipeline.outputs.sql.ddl import statements
from schemas.options.sql import SqlConfig
from schemas.reasons import Reason
from schemas.tables import TABLES
from tests.fake_lake import MODEL, FakeLake
from tests.test_readme import block

OTHER = "other-87654321"
WRITTEN = [table for table in TABLES if table not in {"feature_maps", "foreground"}]
SOURCES = {"images": "all_images", "quarantine": "all_quarantine"}


def fill(lake: FakeLake) -> FakeLake:
    """Make an output of two models with superseded rows and images that were rejected later."""
    lake.run({"a": "v1", "b": "v1", "c": "v1"}, {"bad": Reason.CORRUPT})
    lake.run({"a": "v2"}, {"b": Reason.EMPTY})
    lake.run({"a": "v1"}, model=OTHER)
    return lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return fill(FakeLake(str(tmp_path_factory.mktemp("engines") / "out [1] it's")))


def expected(lake: FakeLake, model: str = MODEL) -> dict[str, list[tuple[str, str]]]:
    """Return image_id and run_id of the current rows of each table."""
    with reader.open(lake.out, model=model, endpoint_url=lake.storage.endpoint_url) as opened:
        return {table: sorted(opened.relation(table).project("image_id, run_id").fetchall()) for table in WRITTEN}


def ddl(lake: FakeLake, engine, **options) -> list[str]:
    """Return the statements without the comment."""
    storage = {"endpoint_url": lake.storage.endpoint_url} if lake.storage.endpoint_url else {}
    config = SqlConfig.resolve({"out": lake.out, "ddl": engine, "model": MODEL, **storage, **options})
    comment, *found = statements(config, engine)
    assert comment.startswith("-- ")
    return found


def test_duckdb_runs_its_statements(lake):
    with duckdb.connect() as con:
        for statement in ddl(lake, "duckdb"):
            con.execute(statement)
        found = {table: sorted(con.sql(f"SELECT image_id, run_id FROM {table}").fetchall()) for table in WRITTEN}
        assert found == expected(lake)
        for statement in ddl(lake, "duckdb", model="*"):
            con.execute(statement)
        assert con.sql("SELECT model, count(*) FROM images GROUP BY ALL ORDER BY ALL").fetchall() == [
            (OTHER, 1),
            (MODEL, 2),
        ]


@pytest.mark.parametrize("engine", ["athena", "trino", "spark", "duckdb"])
def test_every_statement_is_one_of_its_dialect(engine, s3):
    lake = FakeLake(f"s3://{s3.bucket()}/out", s3.storage)
    lake.run({"a": "v1"}, {"bad": Reason.EMPTY})
    found = ddl(lake, engine)
    assert len([text for text in found if " VIEW " in text or " TABLE " in text]) >= 2 * len(WRITTEN)
    for statement in found:
        (parsed,) = sqlglot.parse(statement, dialect=engine)
        if not statement.startswith(("MSCK", "CALL")):  # which sqlglot takes as they are
            assert isinstance(parsed, sqlglot.exp.Create)
    assert f"{'s3a' if engine == 'spark' else 's3'}://" in found[0]
    if engine == "athena":
        columns = {
            one.name: one.args["kind"].sql("hive")
            for one in sqlglot.parse_one(found[4], dialect="athena").find_all(sqlglot.exp.ColumnDef)
        }
        assert columns["heat"] == "ARRAY<INT>"
        assert columns["model"] == "STRING"


@pytest.mark.parametrize("engine", ["athena", "trino", "spark", "duckdb"])
def test_the_rule_for_current_rows_is_plain_sql(engine):
    query = sqlglot.parse_one(reader.CURRENT_ROWS_SQL.format(table="all_boxes", **SOURCES), dialect=engine)
    assert not [join for join in query.find_all(sqlglot.exp.Join) if join.kind != "INNER"]
    assert "SEMI" not in reader.CURRENT_ROWS_SQL


def test_maps_are_usable_where_there_is_no_uint8(lake, tmp_path):
    with reader.open(lake.out, model=MODEL) as opened:
        maps = opened.sql("SELECT * REPLACE (heat::SMALLINT[] AS heat) FROM heatmaps").to_arrow_table()
        bytes_ = opened.arrow("heatmaps").to_pylist()
    assert maps.schema.field("heat").type.value_type == pa.int16()
    deltalake.write_deltalake(str(tmp_path / "delta"), maps)
    rows = pa.table(deltalake.DeltaTable(str(tmp_path / "delta")).to_pyarrow_table()).to_pylist()
    assert len(rows) == 4
    for row in rows:
        (same,) = [one for one in bytes_ if (one["image_id"], one["rank"]) == (row["image_id"], row["rank"])]
        np.testing.assert_array_equal(reader.heatmap(row), reader.heatmap(same))


@pytest.mark.slow
def test_spark_runs_its_statements_and_readmes_query(lake):
    if shutil.which("java") is None:
        pytest.skip("no Java: Spark can't start; .ci/run installs default-jre-headless on Debian")
    from pyspark.sql import SparkSession

    settings = {"spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC", "spark.sql.shuffle.partitions": "1"}
    building = SparkSession.builder.master("local[1]").config("spark.driver.host", "127.0.0.1")
    for name, value in settings.items():
        building = building.config(name, value)
    spark = building.getOrCreate()
    try:
        for statement in ddl(lake, "spark"):
            spark.sql(statement.removesuffix(";"))
        found = {
            table: sorted(tuple(row) for row in spark.table(table).select("image_id", "run_id").collect())
            for table in WRITTEN
        }
        assert found == expected(lake)
        literal = lake.out.replace("[", "\\[").replace("]", "\\]")
        by_path = {name: f"parquet.`{literal}/{name}`" for name in ("images", "quarantine", "boxes")}
        query = reader.CURRENT_ROWS_SQL.format(table=by_path["boxes"], **by_path)
        plain = spark.sql(f"{query} WHERE found.model = '{MODEL}'")
        assert sorted(tuple(row) for row in plain.select("image_id", "run_id").collect()) == found["boxes"]
        assert spark.table("heatmaps").schema["heat"].dataType.simpleString() == "array<smallint>"
        with reader.open(lake.out, model=MODEL) as opened:
            row = opened.arrow("heatmaps", where="rank = 0").to_pylist()[0]
        (by_spark,) = spark.table("heatmaps").where(f"rank = 0 AND image_id = '{row['image_id']}'").collect()
        np.testing.assert_array_equal(reader.heatmap(by_spark.asDict()), reader.heatmap(row))
        names = {"spark": spark}
        code = block("query-spark").replace("camlake-demo/labels", literal.replace("\\", "\\\\"))
        exec(code, names)
        sql = block("query-duckdb").replace("camlake-demo/labels", lake.out.replace("[", "[[]").replace("'", "''"))
        rows = [(one.model, one.label, one.boxes, one.area) for one in names["top"].collect()]
        assert rows == duckdb.sql(sql).fetchall()
    finally:
        spark.stop()
