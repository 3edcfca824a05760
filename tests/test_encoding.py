"""The tables as Parquet, and the suite that measures them."""

import hashlib
import io

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.suites.steady_rate import SilentReporter
from pipeline.arrays.rounding import rounded
from pipeline.storage.lake.encoding import BOXES_BY_LABEL, Encoding, to_parquet
from schemas.options.benchmark import MeasureConfig
from tests.benchmarks import encoding as suite


def test_heavy_rows_get_smaller_row_groups():
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4096 * 5000, np.float32)), 4096)
    wide = pa.table({"image_id": [f"{n:032x}" for n in range(5000)], "run_id": ["r"] * 5000, "feature": features})
    with pq.ParquetFile(io.BytesIO(to_parquet(wide))) as file:
        assert file.metadata.row_group(0).num_rows * 4096 * 4 <= 16 * 2**20
        assert file.metadata.num_row_groups == 5
    light = wide.select(["image_id", "run_id"])
    with pq.ParquetFile(io.BytesIO(to_parquet(light))) as file:
        assert file.metadata.num_row_groups == 1


@pytest.mark.parametrize("encoding", [Encoding(), BOXES_BY_LABEL])
def test_a_filter_says_which_row_groups_an_image_is_not_in(tmp_path, encoding):
    ids = [hashlib.md5(str(n // 2).encode(), usedforsecurity=False).hexdigest() for n in range(50_000)]
    rows = pa.table({"label": ["cat", "dog"] * 25_000, "image_id": ids}).sort_by(encoding.sorted_by)
    path = tmp_path / "t.parquet"
    path.write_bytes(to_parquet(rows, encoding))
    n_groups = -(-50_000 // encoding.row_group_rows)

    def excluded(image_id: str) -> int:
        probe = f"parquet_bloom_probe('{path}', 'image_id', '{image_id}')"
        return duckdb.sql(f"SELECT count(*) FILTER (bloom_filter_excludes) FROM {probe}").fetchall()[0][0]

    found = [excluded(image_id) for image_id in ids[:40]]
    assert max(found) <= n_groups - (1 if encoding.sorted_by == "image_id" else 2)
    assert sum(found) > 0.8 * 40 * (n_groups - 2)
    assert sum(excluded(f"{n:032x}") for n in range(40)) > 0.8 * 40 * n_groups


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
