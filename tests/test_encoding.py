"""The tables as Parquet, and the suite that measures them."""

import hashlib
import io

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.benchmark.steady_rate import SilentReporter
from pipeline.arrays.rounding import rounded
from pipeline.storage.lake.encoding import Encoding, to_parquet
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import CommittedFiles
from schemas.options.benchmark import MeasureConfig
from schemas.runs import DataFile
from tests.benchmarks import encoding as suite
from tests.benchmarks.queries import CountingStore


def test_heavy_rows_get_smaller_row_groups():
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4096 * 5000, np.float32)), 4096)
    wide = pa.table({"image_id": [f"{n:032x}" for n in range(5000)], "run_id": ["r"] * 5000, "feature": features})
    with pq.ParquetFile(io.BytesIO(to_parquet(wide))) as file:
        assert file.metadata.row_group(0).num_rows * 4096 * 4 <= 16 * 2**20
        assert file.metadata.num_row_groups == 5
    light = wide.select(["image_id", "run_id"])
    with pq.ParquetFile(io.BytesIO(to_parquet(light))) as file:
        assert file.metadata.num_row_groups == 1


def box_rows(n: int, confident: float = 0.1) -> pa.Table:
    """Return boxes sorted by image, two of each image."""
    rng = np.random.default_rng(0)
    ids = [hashlib.md5(str(one // 2).encode(), usedforsecurity=False).hexdigest() for one in range(n)]
    scores = pa.array(np.where(rng.random(n) < confident, 0.9, 0.1) * rng.random(n), pa.float32())
    labels = [f"class {one}" for one in rng.integers(0, 200, n)]
    columns = {"image_id": ids, "uri": [f"s3://photographs/{one}.jpg" for one in ids]}
    return pa.table({**columns, "label": labels, "box_score": scores}).sort_by("image_id")


@pytest.mark.parametrize("boxes", [False, True])
def test_a_filter_says_which_row_groups_an_image_is_not_in(tmp_path, boxes):
    rows = box_rows(100_000)
    ids = rows["image_id"].to_pylist()
    path = tmp_path / "t.parquet"
    path.write_bytes(to_parquet(rows if boxes else rows.select(["image_id", "label"])))
    n_groups = pq.read_metadata(path).num_row_groups

    def excluded(image_id: str) -> int:
        probe = f"parquet_bloom_probe('{path}', 'image_id', '{image_id}')"
        return duckdb.sql(f"SELECT count(*) FILTER (bloom_filter_excludes) FROM {probe}").fetchall()[0][0]

    found = [excluded(image_id) for image_id in ids[:40]]
    assert max(found) <= n_groups - 1
    assert sum(found) > 0.8 * 40 * (n_groups - 2)
    assert sum(excluded(f"{n:032x}") for n in range(40)) > 0.8 * 40 * n_groups


def test_boxes_lie_by_label_and_the_confident_ones_apart():
    rows = box_rows(100_000)
    with pq.ParquetFile(io.BytesIO(to_parquet(rows))) as file:
        groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        assert file.metadata.row_group(0).column(0).has_offset_index
    assert (
        pa.concat_tables(groups)
        .sort_by([(name, "ascending") for name in rows.schema.names])
        .equals(rows.sort_by([(name, "ascending") for name in rows.schema.names]))
    )
    for group in groups:
        keys = list(zip(group["label"].to_pylist(), (-group["box_score"].to_numpy()).tolist(), strict=True))
        assert keys == sorted(keys)
        confident = pc.greater_equal(group["box_score"], 0.5)
        assert len(pc.unique(confident)) == 1
        assert len(group) <= (2048 if confident[0].as_py() else 65_536)


def test_boxes_without_a_score_are_written_too():
    rows = box_rows(100)
    none = rows.set_column(3, "box_score", pa.nulls(100, pa.float32()))
    assert pq.read_table(io.BytesIO(to_parquet(none)))["box_score"].null_count == 100
    with pq.ParquetFile(io.BytesIO(to_parquet(rows.slice(0, 0)))) as file:
        assert file.schema_arrow.equals(rows.schema)


def test_a_query_for_a_label_reads_few_bytes(tmp_path):
    rows = box_rows(60_000)
    store = CountingStore()
    (tmp_path / "boxes").mkdir()
    data = to_parquet(rows)
    (tmp_path / "boxes" / "0.parquet").write_bytes(data)
    file = DataFile(table="boxes", path="boxes/0.parquet", rows=len(rows), size_bytes=len(data))
    with duckdb.connect() as con:
        con.register_filesystem(CommittedFiles(store, LakePaths(str(tmp_path)), [file]))
        con.execute("SET parquet_prefetch_column_gap = 0")
        query = "SELECT * FROM 'camlake://boxes/0.parquet' WHERE label = 'class 7' AND box_score >= 0.5"
        found = con.sql(query).to_arrow_table()
    expected = rows.filter((pc.field("label") == "class 7") & (pc.field("box_score") >= 0.5))
    assert len(found) == len(expected) > 0
    assert store.bytes < 0.15 * len(data)


def test_heatmaps_take_a_byte_a_cell():
    heat = np.random.default_rng(0).integers(0, 256, (20_000, 49), dtype=np.uint8)
    rows = pa.table(
        {"image_id": [f"{n:032x}" for n in range(20_000)], "heat": pa.array(list(heat), pa.list_(pa.uint8()))}
    )
    with pq.ParquetFile(io.BytesIO(to_parquet(rows))) as file:
        column = file.metadata.row_group(0).column(1)
        assert file.read()["heat"].to_pylist() == heat.tolist()
    assert column.path_in_schema == "heat.list.element"
    assert column.total_compressed_size < 1.02 * heat.size


@pytest.mark.parametrize(
    "encoding", [Encoding(), Encoding(dictionary=False), Encoding("snappy", None), Encoding(level=9)]
)
def test_every_encoding_gives_the_rows_back(tmp_path, encoding):
    rows = pa.table(
        {
            "image_id": [f"{n:032x}" for n in range(3000)],
            "label": ["cat", "dog", "it's"] * 1000,
            "heat": pa.array([[n % 256, 0, 255] for n in range(3000)], pa.list_(pa.uint8())),
            "feature": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6000, dtype=np.float32)), 2),
        }
    )
    path = tmp_path / "t.parquet"
    path.write_bytes(to_parquet(rows, encoding))
    assert pq.read_table(path).equals(rows)
    read = duckdb.sql(f"SELECT * FROM '{path}' ORDER BY image_id").to_arrow_table()
    assert read["heat"].to_pylist() == rows["heat"].to_pylist()
    assert read["feature"].to_pylist() == rows["feature"].to_pylist()
    assert read["label"].to_pylist() == rows["label"].to_pylist()


@pytest.fixture
def wide(tmp_path):
    return suite._annotated(MeasureConfig(count=16), tmp_path)


def test_varied_rows_are_other_images_of_the_same_kind(wide):
    rows = suite.varied(wide, 40, np.random.default_rng(0))
    assert len(rows) == 40
    assert rows.schema == wide.schema
    assert len(pc.unique(rows["image_id"])) == 40
    assert rows["boxes"].combine_chunks().value_lengths() == wide["boxes"].combine_chunks().value_lengths().take(
        pa.array([*range(16), *range(16), *range(8)])
    )
    before, after = (np.stack(table["feature"].to_numpy()) for table in (wide, rows.slice(16, 16)))
    np.testing.assert_allclose(after, before, rtol=0.15)
    assert (after[before != 0] != before[before != 0]).mean() > 0.9


def test_the_suite_measures_every_setting(monkeypatch):
    monkeypatch.setattr(suite, "IMAGES", 48)
    settings = {
        "default": (Encoding(), 48),
        "no dictionary": (Encoding(dictionary=False), 48),
        "small": (Encoding(), 10),
    }
    monkeypatch.setattr(suite, "SETTINGS", settings)
    figures = suite.measure(MeasureConfig(count=16, repeats=2), SilentReporter())
    for name in settings:
        assert figures[f"{name}: bytes an image"] > 100
        for what in (
            "µs an image to write",
            "ms to count top-1 labels",
            "ms to find an image",
            "ms to read 1,000 heatmaps",
        ):
            assert len(figures[f"{name}: {what}"]["runs"]) == 2
    assert figures["small: bytes an image"] > figures["default: bytes an image"]
    parts = [value for name, value in figures.items() if name.startswith("default: bytes an image, ")]
    assert sum(parts) == pytest.approx(figures["default: bytes an image"])
    assert 0 < figures["heatmaps / float32 maps in snappy"] < 0.6


def test_varied_features_have_as_many_digits_as_the_stored_ones(wide):
    for digits in (11, 24):
        vectors = wide["feature"].combine_chunks()
        values = vectors.flatten().to_numpy() * np.float32(1 + 2**-20)
        stored = rounded(values, 11) if digits == 11 else values
        column = pa.FixedSizeListArray.from_arrays(pa.array(stored), vectors.type.list_size)
        rows = wide.set_column(wide.schema.get_field_index("feature"), wide.schema.field("feature"), column)
        varied = suite.varied(rows, 40, np.random.default_rng(0))["feature"].combine_chunks().flatten().to_numpy()
        assert np.array_equal(rounded(varied, 11), varied) == (digits == 11)
        features = suite.split_rows(rows, "r", ("features",))["features"]
        whole = suite._with_whole_features(features)["feature"].combine_chunks().flatten().to_numpy()
        assert not np.array_equal(rounded(whole, 11), whole)
        before = features["feature"].combine_chunks().flatten().to_numpy()
        np.testing.assert_allclose(whole, before, rtol=2**-11)


def test_float_maps_stay_within_the_step_of_their_bytes(wide):
    heatmaps = suite.split_rows(wide, "r", ("heatmaps",))["heatmaps"]
    floats = suite._with_float_maps(heatmaps)
    for row, exact in zip(heatmaps.slice(0, 5).to_pylist(), floats["heat"].slice(0, 5).to_pylist(), strict=True):
        step = (row["heat_max"] - row["heat_min"]) / 255
        np.testing.assert_allclose(exact, row["heat_min"] + step * np.array(row["heat"]), atol=0.51 * step)
