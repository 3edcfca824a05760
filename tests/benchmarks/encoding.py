"""Measure the tables as Parquet: bytes an image, time to write and time to query, for several encodings in turn.

The rows come from real maps: of the given photographs and network, or of the demo network on rendered scenes. More
rows are made from these as rows of other images, with every value slightly changed, so that compression never finds
the same row twice.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from jobs.benchmark.decode_tasks import fetched_table
from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs, photographs_job
from jobs.terminal.console import main
from pipeline.annotate.annotate_stage import FEATURE_BITS, AnnotateStage
from pipeline.annotate.decode_stage import DecodeStage
from pipeline.annotate.model import load_model
from pipeline.annotate.reporter import Reporter
from pipeline.annotate.resources import Machine, plan_compute
from pipeline.annotate.spec import annotate_spec, decode_spec
from pipeline.arrays.rounding import rounded
from pipeline.models.networks.demo_network import DEMO
from pipeline.storage.lake.encoding import Encoding, to_parquet
from pipeline.storage.lake.rows import split_rows
from schemas.options.benchmark import MeasureConfig
from schemas.tables import Table, optional_tables
from tests.benchmarks.command import benchmark

IMAGES = 20_480
MOST_ANNOTATED = 2_000
"""The most pictures that go through the network; the other rows are variations of the rows of these pictures."""
LOOKUPS = 5
OUTPUTS = tuple(table for table in optional_tables() if table not in {"feature_maps", "foreground"})
"""The rows that are varied come from a network without a figure/ground direction, so they have no such map."""
SETTINGS: dict[str, tuple[Encoding, int]] = {
    "default": (Encoding(), IMAGES),
    "zstd 1": (Encoding(level=1), IMAGES),
    "zstd 6": (Encoding(level=6), IMAGES),
    "zstd 9": (Encoding(level=9), IMAGES),
    "no dictionary": (Encoding(dictionary=False), IMAGES),
    "row groups of 4 MiB": (Encoding(row_group_bytes=4 * 2**20), IMAGES),
    "row groups of 64 MiB": (Encoding(row_group_bytes=64 * 2**20), IMAGES),
    "row groups of 5,000 rows": (Encoding(row_group_rows=5_000), IMAGES),
    "row groups of 65,536 rows": (Encoding(row_group_rows=65_536), IMAGES),
    "files of 1,280 images": (Encoding(), 1_280),
    "files of 5,120 images": (Encoding(), 5_120),
}
"""The settings that are compared: an encoding, and the number of images whose rows a file holds."""
FLOAT_MAPS = Encoding("snappy", None)

Files = Mapping[Table, str]
"""The glob of the files of each table."""


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return for each setting bytes an image, µs to write an image and ms of three queries.

    The figures also compare the bytes with those of float32 maps.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = varied(_annotated(config, folder), IMAGES, np.random.default_rng(0))
        ids = rows["image_id"].slice(0, LOOKUPS).to_pylist()
        measured: dict[str, list[float]] = {}
        for repeat in range(config.repeats):
            for name, (encoding, images_per_file) in SETTINGS.items():
                written_us, files = _write(rows, encoding, images_per_file, folder / f"{name} {repeat}")
                figures = {"µs an image to write": written_us} | _query_ms(files, ids)
                for what, value in figures.items():
                    measured.setdefault(f"{name}: {what}", []).append(value)
            reporter.say(f"run {repeat + 1} of {config.repeats}: {len(SETTINGS)} settings written and queried")
        sizes = {name: _bytes_an_image(folder / f"{name} 0") for name in SETTINGS}
    figures = {f"{name}: bytes an image": sum(of.values()) for name, of in sizes.items()}
    figures |= {f"default: bytes an image, {table}": size for table, size in sizes["default"].items()}
    return figures | _against_float_maps(rows) | {what: spread(values) for what, values in measured.items()}


def _annotated(config: MeasureConfig, folder: Path) -> pa.Table:
    """Return the wide rows (pipeline.storage.lake.rows) of up to MOST_ANNOTATED pictures."""
    if config.images is None:
        config = config.model_copy(update={"model": DEMO, "weights": None})
    photographs = make_photographs(config, folder / "photographs", min(config.count, MOST_ANNOTATED))
    job_config = photographs_job(config, folder, device="cpu")
    model = load_model(job_config)
    cores = os.cpu_count() or 1
    runtime = plan_compute(job_config, Machine(cores, 0, cores)).runtime
    decode = DecodeStage(decode_spec(job_config, model))
    annotate = AnnotateStage(annotate_spec(job_config, model, runtime), model.weights.state)
    size = runtime.batch_size
    batches = [photographs[start : start + size] for start in range(0, len(photographs), size)]
    parts = [annotate(decode(fetched_table(batch))) for batch in batches]
    rows = pa.concat_tables(parts)
    return rows.filter(rows["reason_code"].is_null()).combine_chunks()


# -- variations of rows ------------------------------------------------------------------------------------------------


def varied(rows: pa.Table, count: int, rng: np.random.Generator) -> pa.Table:
    """Return ``count`` wide rows of other images: ``rows`` in turn, floats changed by about 2 %, cells by up to 1."""
    copies = range(-(-count // len(rows)))
    return pa.concat_tables(_variation(rows, copy, rng) for copy in copies).slice(0, count)


def _variation(rows: pa.Table, copy: int, rng: np.random.Generator) -> pa.Table:
    uris = [f"s3://photographs/{copy:04d}/{rng.integers(2**32):08x}-{place:06d}.jpg" for place in range(len(rows))]
    changed: dict[str, pa.Array] = {
        "uri": pa.array(uris),
        "image_id": pa.array([hashlib.blake2b(uri.encode(), digest_size=16).hexdigest() for uri in uris]),
        "etag": pa.array([hashlib.md5(uri.encode(), usedforsecurity=False).hexdigest() for uri in uris]),
        "size_bytes": pa.array(rng.integers(20_000, 200_000, len(rows))),
        "top1_prob": _jittered(rows["top1_prob"].chunk(0), rng),
        "boxes": _nested(rows["boxes"].chunk(0), lambda name, column: _of_box(name, column, rng)),
        "heatmaps": _nested(rows["heatmaps"].chunk(0), lambda name, column: _of_map(name, column, rng)),
    }
    vectors = rows["feature"].chunk(0)
    changed["feature"] = pa.FixedSizeListArray.from_arrays(_of_feature(vectors.flatten(), rng), vectors.type.list_size)
    return pa.table({name: changed.get(name, rows[name]) for name in rows.schema.names}, schema=rows.schema)


def _nested(lists: pa.ListArray, change: Callable[[str, pa.Array], pa.Array]) -> pa.ListArray:
    structs = lists.flatten()
    columns = [change(field.name, structs.field(field.name)) for field in structs.type]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lists.value_lengths())]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(structs.type)))


def _of_box(name: str, column: pa.Array, rng: np.random.Generator) -> pa.Array:
    return (
        _jittered(column, rng)
        if pa.types.is_float32(column.type) and name not in {"threshold", "box_score"}
        else column
    )


def _of_map(name: str, column: pa.Array, rng: np.random.Generator) -> pa.Array:
    if name != "heat":
        return _jittered(column, rng) if pa.types.is_float32(column.type) else column
    cells = column.flatten().to_numpy() + np.round(rng.normal(0, 1, len(column.flatten())))
    return pa.ListArray.from_arrays(column.offsets, pa.array(np.clip(cells, 0, 255).astype(np.uint8)))


def _of_feature(column: pa.Array, rng: np.random.Generator) -> pa.Array:
    """Return the values with noise, rounded to the same number of binary digits."""
    changed, before = _jittered(column, rng), column.to_numpy()
    short = np.array_equal(rounded(before, FEATURE_BITS), before)
    return pa.array(rounded(changed.to_numpy(), FEATURE_BITS)) if short else changed


def _jittered(column: pa.Array, rng: np.random.Generator) -> pa.Array:
    """Return floats with 2 % of noise; zeros stay 0."""
    noise = 1 + 0.02 * rng.standard_normal(len(column), dtype=np.float32)
    return pa.array(column.to_numpy(zero_copy_only=False) * noise, column.type)


# -- files and queries -------------------------------------------------------------------------------------------------


def _write(rows: pa.Table, encoding: Encoding, images_per_file: int, folder: Path) -> tuple[float, Files]:
    """Write all tables as commits of ``images_per_file`` would; return µs of CPU an image to encode, and the files."""
    encoding_s = 0.0
    for start in range(0, len(rows), images_per_file):
        for table, part in split_rows(rows.slice(start, images_per_file), "run", OUTPUTS).items():
            if len(part):
                started_s = time.process_time()
                data = to_parquet(part, encoding)
                encoding_s += time.process_time() - started_s
                (folder / table).mkdir(parents=True, exist_ok=True)
                (folder / table / f"{start}.parquet").write_bytes(data)
    return encoding_s / len(rows) * 1e6, {table: f"{folder / table}/*.parquet" for table in ("images", *OUTPUTS)}


def _bytes_an_image(folder: Path) -> dict[str, float]:
    tables = sorted(folder.iterdir())
    return {table.name: sum(path.stat().st_size for path in table.iterdir()) / IMAGES for table in tables}


def _query_ms(files: Files, ids: list[str]) -> dict[str, float]:
    """Return ms of CPU that DuckDB takes for each of three queries."""
    count = f"SELECT label, count(*) FROM '{files['boxes']}' WHERE rank = 0 GROUP BY label"
    maps = f"SELECT image_id, heat FROM '{files['heatmaps']}' WHERE rank = 0 LIMIT 1000"
    finds = [[f"SELECT * FROM '{path}' WHERE image_id = '{one}'" for path in files.values()] for one in ids]
    with duckdb.connect() as con:

        def run_ms(queries: list[str]) -> float:
            started_s = time.process_time()
            for query in queries:
                con.sql(query).to_arrow_table()
            return (time.process_time() - started_s) * 1e3

        run_ms([count])  # the first query pays for DuckDB's own start
        return {
            "ms to count top-1 labels": run_ms([count]),
            "ms to find an image": float(np.median([run_ms(queries) for queries in finds])),
            "ms to read 1,000 heatmaps": run_ms([maps]),
        }


def _against_float_maps(rows: pa.Table) -> Figures:
    """Return the bytes of the default tables, divided by the bytes of tables with plain float32 values in snappy."""
    tables = {name: part for name, part in split_rows(rows, "run", OUTPUTS).items() if len(part)}
    ours = {name: len(to_parquet(part)) for name, part in tables.items()}
    floats = tables | {
        "heatmaps": _with_float_maps(tables["heatmaps"]),
        "features": _with_whole_features(tables["features"]),
    }
    theirs = {name: len(to_parquet(part, FLOAT_MAPS)) for name, part in floats.items()}
    return {
        "heatmaps / float32 maps in snappy": ours["heatmaps"] / theirs["heatmaps"],
        "all tables / the same with float32 maps and unrounded features in snappy": sum(ours.values())
        / sum(theirs.values()),
        "float32 maps in snappy: bytes an image": theirs["heatmaps"] / len(rows),
    }


def _with_whole_features(features: pa.Table) -> pa.Table:
    """Return the table with unrounded float32 features: random values within the rounding step of the stored ones."""
    vectors = features["feature"].combine_chunks()
    values = vectors.flatten().to_numpy()
    half = 2.0**-FEATURE_BITS / 2
    whole = (values * (1 + np.random.default_rng(0).uniform(-half, half, len(values)))).astype(np.float32)
    column = features.schema.get_field_index("feature")
    return features.set_column(
        column, "feature", pa.FixedSizeListArray.from_arrays(pa.array(whole), vectors.type.list_size)
    )


def _with_float_maps(heatmaps: pa.Table) -> pa.Table:
    """Return the table with float32 maps M_c: random values within the step for which a cell's byte stands."""
    heat = heatmaps["heat"].combine_chunks()
    lengths = heat.value_lengths().to_numpy()
    low, high = (np.repeat(heatmaps[name].to_numpy(), lengths) for name in ("heat_min", "heat_max"))
    steps = heat.flatten().to_numpy() + np.random.default_rng(0).uniform(-0.5, 0.5, len(low))
    values = pa.array((low + steps / 255 * (high - low)).astype(np.float32))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    column = heatmaps.schema.get_field_index("heat")
    return heatmaps.set_column(column, "heat", pa.ListArray.from_arrays(offsets, values))


command = benchmark(
    "encoding",
    "Measure the tables as Parquet: bytes an image, time to write and to query, for each encoding.",
    MeasureConfig,
    measure,
    "--model mobilenet_v2 --images PHOTOS --weights FILE",
)

if __name__ == "__main__":
    main(command)
