"""The boxes that an export has: DuckDB filters and sorts them, and moves to disk what does not fit into its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.outputs.export.batches import BOX_COLUMNS, Batch
from pipeline.outputs.export.classes import Classes
from pipeline.outputs.export.plans import PLAN_TABLE
from pipeline.outputs.reader import Lake
from pipeline.storage.lake.query import MEMORY_LIMIT, quote
from schemas.errors import StoreError, UsageError
from schemas.options.export import ExportConfig

BATCH_ROWS = 50_000
"""Boxes that are in memory at a time as rows."""
BATCH_MAPS = 4_000
"""The same where each row has its class map."""

WITH_MAPS = "SET memory_limit = '500MB'; SET threads = least(2, current_setting('threads'))"
"""DuckDB's limits where masks are cut, so that the process stays under 1.5 GB, of which torch takes half a GB. Cutting
takes so much longer than reading and sorting that more threads would gain nothing."""

IMAGE_COLUMNS = ("image_id", "uri", "width_px", "height_px", "format")
PLAN_COLUMNS = ("etag", "size_bytes", "path", "offset")
MAP_COLUMNS = ("heat_h", "heat_w", "heat_min", "heat_max", "heat")
FIGURE_COLUMNS = ("fg_h", "fg_w", "fg_min", "fg_max", "fg")


@dataclass(frozen=True)
class Selection:
    """The chosen rows of one model."""

    lake: Lake
    model: str
    classes: Classes
    config: ExportConfig
    pictures: bool
    """Whether the rows say where the pictures lie; the images are then in the order in which pictures are read."""
    maps: tuple[str, ...]
    """The tables, heatmaps and foreground, whose maps the rows have."""

    def count(self) -> tuple[int, int]:
        """Choose the boxes, once and before ``batches``; return the numbers of images and of boxes.

        Raises UsageError for a --where that is not valid SQL. DuckDB keeps the boxes, on disk where they are many.
        """
        self.lake.connection().execute(WITH_MAPS if self.maps else f"SET memory_limit = '{MEMORY_LIMIT}'")
        self.lake.connection().execute("SET enable_progress_bar = false")
        all_images = f"SELECT count(*) FROM images WHERE model = {quote(self.model)}"
        with self._errors():
            columns = ", ".join(("image_id", "class_id", *BOX_COLUMNS))
            self.lake.connection().execute(f"CREATE TEMP TABLE {_CHOSEN} AS SELECT {columns} FROM ({self._boxes()})")
            ((boxes,),) = self.lake.sql(f"SELECT count(*) FROM {_CHOSEN}").fetchall()
            with_boxes = f"SELECT count(*) FROM (SELECT DISTINCT image_id FROM {_CHOSEN})"
            ((images,),) = self.lake.sql(all_images if self.config.background else with_boxes).fetchall()
        return images, boxes

    def batches(self) -> Iterator[Batch]:
        """Yield all images with their boxes; an image is never divided."""
        left: pa.Table | None = None
        for part in self._parts():
            rows = part if left is None else pa.concat_tables([left, part])
            starts = _starts(rows)
            left = rows.slice(int(starts[-1]))
            if len(starts) > 1:
                yield self._batch(rows.slice(0, int(starts[-1])), starts[:-1])
        if left is not None:
            yield self._batch(left, _starts(left))

    def _parts(self) -> Iterator[pa.Table]:
        with self._errors():
            reader = self.lake.sql(self._query()).to_arrow_reader(BATCH_MAPS if self.maps else BATCH_ROWS)
        while True:
            with self._errors():
                part = next(reader, None)
            if part is None:
                return
            if len(part):
                yield pa.table(part)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn DuckDB's error into a UsageError where --where caused it, else into a StoreError."""
        try:
            yield
        except duckdb.Error as error:
            line = str(error).strip().splitlines()[0]
            if self.config.where is not None and isinstance(error, duckdb.ProgrammingError | duckdb.DataError):
                raise UsageError(f"--where {self.config.where!r}: {line}") from error
            if isinstance(error, duckdb.OutOfMemoryException):
                raise StoreError(
                    f"the boxes can't be sorted: {line} (fewer with --classes, --where or --model)"
                ) from error
            raise StoreError(f"the output can't be read: {line} (`camlake verify` says what is damaged)") from error

    def _boxes(self) -> str:
        """Return the query for the chosen boxes; --where sees the columns of boxes and of images."""
        config, given = self.config, []
        given += [f"class_id IN ({', '.join(map(str, self.classes.place_of)) or 'NULL'})"]
        given += [] if config.min_score is None else [f"box_score >= {config.min_score!r}::FLOAT"]
        given += [] if config.min_prob is None else [f"class_prob >= {config.min_prob!r}::FLOAT"]
        given += [f"area_frac >= {config.min_area!r}::FLOAT"] if config.min_area > 0 else []
        given += [f"area_frac <= {config.max_area!r}::FLOAT"] if config.max_area < 1 else []
        given += [] if config.max_rank is None else [f"rank <= {config.max_rank}"]
        if config.where is None:
            return f"SELECT * FROM boxes WHERE model = {quote(self.model)} AND {' AND '.join(given)}"
        joined = (
            "SELECT boxes.*, images.* EXCLUDE (image_id, run_id, model, date, uri) FROM boxes"
            f" JOIN images USING (model, image_id, run_id) WHERE model = {quote(self.model)}"
        )
        chosen = f"SELECT * FROM ({joined}) WHERE {' AND '.join(given)}"
        return f"SELECT * FROM ({chosen}) WHERE (\n{config.where}\n)"

    def _query(self) -> str:
        kind = "LEFT JOIN" if self.config.background else "JOIN"
        columns = [f"images.{name}" for name in IMAGE_COLUMNS]
        columns += [f"chosen.{name}" for name in ("class_id", *BOX_COLUMNS)]
        joins = f"{kind} {_CHOSEN} AS chosen USING (image_id)"
        order = "image_id, rank, threshold, component"
        if self.pictures:
            columns += [f'plans."{name}"' for name in PLAN_COLUMNS]
            version = " AND ".join(f"plans.{one} IS NOT DISTINCT FROM images.{one}" for one in _VERSION)
            joins += f" LEFT JOIN {PLAN_TABLE} AS plans ON plans.image_id = images.image_id AND {version}"
            order = f'path, "offset", {order}'
        if "heatmaps" in self.maps:
            columns += [f"heatmaps.{name}" for name in MAP_COLUMNS]
            joins += (
                " LEFT JOIN heatmaps ON heatmaps.model = images.model AND heatmaps.image_id = images.image_id"
                " AND heatmaps.class_id = chosen.class_id"
            )
        if "foreground" in self.maps:
            columns += [f"foreground.{name}" for name in FIGURE_COLUMNS]
            joins += (
                " LEFT JOIN foreground ON foreground.model = images.model AND foreground.image_id = images.image_id"
            )
        return (
            f"SELECT {', '.join(columns)} FROM images {joins} WHERE images.model = {quote(self.model)} ORDER BY {order}"
        )

    def _batch(self, rows: pa.Table, starts: np.ndarray) -> Batch:
        image_columns = [*IMAGE_COLUMNS, *(PLAN_COLUMNS if self.pictures else ())]
        images = rows.select(image_columns).take(starts)
        real = pc.is_valid(rows["class_id"])
        counts = np.add.reduceat(real.to_numpy().astype(np.int64), starts)
        boxes = rows.drop_columns(image_columns)
        boxes = boxes if counts.min() else boxes.filter(real)
        place_of = self.classes.place_of
        lookup = np.zeros(max(place_of, default=0) + 1, np.int64)
        lookup[list(place_of)] = list(place_of.values())
        return Batch(
            images,
            boxes,
            np.concatenate([[0], np.cumsum(counts)]),
            self.classes.names,
            lookup[boxes["class_id"].to_numpy()],
        )


_CHOSEN = "camlake_chosen"
_VERSION = ("etag", "size_bytes", "modified_at")


def _starts(rows: pa.Table) -> np.ndarray:
    """Return the first row of each image; the rows of an image follow each other."""
    ids = rows["image_id"].combine_chunks()
    changed = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.flatnonzero(changed) + 1])
