"""Reads the source of a run of rebox and plans the run: the images of each commit of the source that are not done yet.

The plan has one file for each commit of the source that has images to do, so that a worker reads one commit's files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import torch
from fsspec import AbstractFileSystem

from pipeline.models.localize.foreground import Foreground, foreground_of
from pipeline.storage.filesystems import canonical_url, connect, read_url
from pipeline.storage.lake.commit import BATCH_ROWS
from pipeline.storage.lake.encoding import from_parquet, in_row_groups
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import committed_views, file_urls, quote_list
from pipeline.storage.lake.records import committed_files, counted_commits, load_runs, runs_with_rows
from pipeline.storage.lake.rows import plan_rows
from pipeline.storage.lake.whole_objects import read_whole, write_whole
from pipeline.storage.truth.class_join import ClassTable, join_classes
from pipeline.storage.truth.class_names import ClassNames, StoredNames
from schemas.errors import StoreError, UsageError
from schemas.options.box_rules import HEURISTIC_CLASSES, RIGHT_SHARE
from schemas.options.rebox import ReboxConfig
from schemas.runs import CommitRecord, Counts, RunManifest
from schemas.tables import TABLES, Table
from schemas.url_secrets import safe_url

_ENDINGS: tuple[Table, ...] = ("images", "quarantine")


@dataclass(frozen=True)
class Source:
    """The committed rows of one model in an output."""

    fs: AbstractFileSystem
    root: str
    url: str
    """The canonical URL of the output, without secrets."""
    run: RunManifest
    """The newest run that has rows."""
    run_ids: tuple[str, ...]
    """The ids of all runs that have rows, oldest first."""
    commits: tuple[CommitRecord, ...]
    foreground: Foreground | None = None
    """The figure/ground direction whose maps are in the table foreground; None where there are none."""

    def current_rows(
        self, commit: CommitRecord, planned: pa.Table, columns: Mapping[Table, Sequence[str]] | None = None
    ) -> dict[Table, pa.Table]:
        """Return the rows that the ``planned`` inputs have in images, boxes, heatmaps, foreground and quarantine.

        ``commit`` has these inputs; ``columns`` gives other tables and their columns. Raises StoreError, which fails
        the run, where a file can't be read.
        """
        wanted, names_of = _endings(planned, "detail").combine_chunks(), columns or _COLUMNS
        read = {
            table: self._read(commit, table, list(dict.fromkeys([*names, "run_id"])))
            for table, names in names_of.items()
        }
        kept = {table: pc.is_in(_endings(found, "run_id"), wanted) for table, found in read.items()}
        rows = {table: found.select(list(names_of[table])) for table, found in read.items()}
        # Feature maps take 31 kB a row: they are not copied where all rows stay.
        return {
            table: found if pc.all(kept[table]).as_py() else found.filter(kept[table]) for table, found in rows.items()
        }

    @property
    def right_share(self) -> float:
        """Share of right boxes among the boxes of true classes; gives box_score where there is no calibration."""
        return self.foreground.card.right_share if self.foreground else RIGHT_SHARE

    @property
    def says_without_figures(self) -> str:
        """Return a line where the boxes of the source are fused and new ones can't be, or shall not; else nothing."""
        if self.foreground or self.run.settings.get("foreground", "off") == "off":
            return ""
        return "boxes come from class maps alone: no figure/ground maps are stored for them, or wanted"

    def class_names(self) -> ClassNames:
        """Return the names of the network's classes, as far as the stored maps tell them.

        A class that has no map in the whole output has no name here.
        """
        labels: list[str | None] = [None] * self.run.lineage.classes
        files = [file for commit in self.commits for file in commit.files if file.table == "heatmaps"]
        with committed_views(self.fs, self.root, files) as con:
            for class_id, label in con.execute("SELECT DISTINCT class_id, label FROM all_heatmaps").fetchall():
                labels[class_id] = label
        return StoredNames(labels) if None in labels else ClassNames(labels)

    def _read(self, commit: CommitRecord, table: Table, names: Sequence[str]) -> pa.Table:
        columns, spec = list(names), TABLES[table]
        none = (spec.columns if spec.open_columns else spec.schema()).empty_table().select(columns)
        paths = [LakePaths(self.root).full(file.path) for file in commit.files if file.table == table]
        parts = (from_parquet(read_whole(self.fs, path), path, columns) for path in paths)
        return pa.concat_tables([none, *(part.cast(none.schema) for part in parts)])


def _endings(rows: pa.Table, run: str) -> pa.ChunkedArray:
    """Return the run and the image of each row: a merged commit may have rows of an image from several runs."""
    return pc.binary_join_element_wise(rows[run], rows["image_id"], "/")


_COLUMNS: dict[Table, tuple[str, ...]] = {
    "images": tuple(TABLES["images"].columns.names),
    "quarantine": tuple(TABLES["quarantine"].columns.names),
    "boxes": ("image_id", "rank", "class_prob"),
    "heatmaps": ("image_id", "rank", "class_id", "label", "heat_h", "heat_w", "heat_min", "heat_max", "heat"),
    "foreground": ("image_id", "fg_h", "fg_w", "fg_min", "fg_max", "fg"),
}
"""The columns that ``current_rows`` reads from each table."""


class Work(NamedTuple):
    """The inputs of one commit of the source that are not done yet."""

    commit: CommitRecord
    plan: str
    """The file of the plan that lists these inputs; a path relative to the new output."""
    rows: int

    def planned(self, fs: AbstractFileSystem, root: str) -> pa.Table:
        """Return image_id, the named ``classes`` and, as ``detail``, the run of each input; the plan is at ``root``."""
        path = LakePaths(root).full(self.plan)
        return from_parquet(read_whole(fs, path), path, ["image_id", "classes", "detail"])


def open_source(config: ReboxConfig, refuse: Callable[[ReboxConfig, RunManifest], None] | None = None) -> Source:
    """Return the source that ``config`` names; ``refuse`` raises for an output without the tables that are needed.

    Raises StoreError where there is no output with rows. Raises UsageError for an unknown model and for an output
    without the tables that the new boxes need.
    """
    fs, root = connect(config.labels, config, anonymous=config.anonymous)
    runs = load_runs(fs, root)
    own = runs_with_rows(runs, config.model, safe_url(config.labels))
    (refuse or _refuse_unfit)(config, own[-1])
    commits = tuple(counted_commits(fs, root, [run for run in runs if run.model == own[-1].model]))
    url = safe_url(canonical_url(config.labels))
    foreground = _foreground(config, fs, root, own[-1])
    return Source(fs, root, url, own[-1], tuple(run.run_id for run in own), commits, foreground)


def _foreground(config: ReboxConfig, fs: AbstractFileSystem, root: str, run: RunManifest) -> Foreground | None:
    """Return the figure/ground direction for the new boxes; None where the class maps alone give the boxes.

    Raises UsageError where the given file has another direction than the stored maps, and where no figure/ground maps
    are stored.
    """
    digest = run.settings.get("foreground", "off")
    stored = "foreground" in run.settings["outputs"]
    if config.foreground == "off" or (config.foreground == "auto" and (config.box_rule != "auto" or not stored)):
        return None
    path = LakePaths(root).foreground_file(run.model)
    content = None if digest == "off" or not stored else read_whole(fs, path)
    if content is None:
        raise UsageError(f"--foreground {config.foreground}: {safe_url(config.labels)} has no maps in foreground")
    kept = foreground_of(content, path)
    if kept.digest != digest:
        raise StoreError(f"{safe_url(config.labels)}: its figure/ground direction was changed; put the old one back")
    if config.foreground == "auto":
        return kept
    where = f"--foreground {safe_url(config.foreground)}"
    given = foreground_of(read_url(config.foreground, config), where)
    if not (torch.equal(given.mean, kept.mean) and torch.equal(given.vector, kept.vector)):
        raise UsageError(f"{where}: another direction than that of the stored maps; annotate anew with it")
    return given


def _refuse_unfit(config: ReboxConfig, run: RunManifest) -> None:
    """Raise UsageError where the source can't give the boxes that ``config`` asks for."""
    settings, where = run.settings, safe_url(config.labels)
    missing = [table for table in ("heatmaps", "boxes") if table not in settings["outputs"]]
    if missing:
        raise UsageError(
            f"LABELS {where}: has no {missing[0]}; new boxes come from heatmaps, their class_prob from boxes: "
            "annotate with both --outputs"
        )
    if settings.get("box_rule") == "heuristic" != config.box_rule:
        raise UsageError(
            f"--box-rule {config.box_rule}: {where} was annotated with --box-rule heuristic, whose boxes tell the"
            " class_prob of three classes only; allowed: heuristic"
        )
    if config.box_rule == "heuristic" and settings["topk"] < HEURISTIC_CLASSES:
        raise UsageError(
            f"--box-rule heuristic: {where} was annotated with --topk {settings['topk']}; it takes"
            f" {HEURISTIC_CLASSES} or more"
        )


class ReboxPlan(NamedTuple):
    """The plan of a run of rebox."""

    works: tuple[Work, ...]
    counts: Counts
    with_classes: int
    """Number of planned inputs for which ``--classes`` names classes."""


def plan_rebox(
    source: Source,
    fs: AbstractFileSystem,
    root: str,
    plan_dir: str,
    classes: ClassTable | None = None,
    model: str | None = None,
) -> ReboxPlan:
    """Write the plan to ``root``/``plan_dir``, with the ``classes`` that are named for each input, and return it.

    ``model`` is the partition of the new rows, by default that of the source.

    An input is done where the new output has the same version of the input in the same table, images or quarantine.
    Memory is bounded, because DuckDB moves data to disk.
    """
    ours = [run for run in load_runs(fs, root) if run.model == (model or source.run.model)]
    files = [file for commit in source.commits for file in commit.files if file.table in _ENDINGS]
    with committed_views(source.fs, source.root, files) as con:
        with committed_views(fs, root, committed_files(ours)) as target:
            done = target.sql("SELECT image_id, etag, size_bytes, modified_at, annotated FROM endings")
            con.register("done_rows", done.to_arrow_reader(BATCH_ROWS))
            con.execute("CREATE TABLE done AS SELECT * FROM done_rows")
        _add_commits(con, source)
        _add_planned(con)
        join_classes(con, classes)
        works = tuple(_write_plan(con, source, fs, root, plan_dir))
        ((listed,),) = con.execute("SELECT count(*) FROM endings").fetchall()
        ((with_classes,),) = con.execute("SELECT count(*) FROM named").fetchall()
    planned = sum(work.rows for work in works)
    return ReboxPlan(works, Counts(listed=listed, already_done=listed - planned, planned=planned), with_classes)


def _add_commits(con: duckdb.DuckDBPyConnection, source: Source) -> None:
    """Make the table ``commits``: for each image and run the index of the commit that has the image's row."""
    con.execute("CREATE TABLE commits (image_id VARCHAR, run_id VARCHAR, commit BIGINT)")
    for table in _ENDINGS:
        urls = [
            (url, index)
            for index, commit in enumerate(source.commits)
            for url in file_urls(source.fs, source.root, commit.files, table)
        ]
        if urls:
            con.register("files", pa.table({"url": [url for url, _ in urls], "commit": [index for _, index in urls]}))
            rows = f"read_parquet({quote_list([url for url, _ in urls])}, filename = true, hive_partitioning = false)"
            con.execute(
                f"INSERT INTO commits SELECT image_id, run_id, commit FROM {rows} AS rows JOIN files ON filename = url"
            )


def _add_planned(con: duckdb.DuckDBPyConnection) -> None:
    """Make the table ``planned``: the inputs that are not done, numbered in the order of their commits."""
    con.execute(
        """CREATE TABLE planned AS SELECT row_number() OVER (ORDER BY commit, image_id) AS seq,
            commit, uri, image_id, run_id AS detail, etag, size_bytes, modified_at
        FROM endings JOIN commits USING (image_id, run_id) WHERE NOT EXISTS (
            SELECT 1 FROM done WHERE done.image_id = endings.image_id AND done.annotated = endings.annotated
            AND done.etag IS NOT DISTINCT FROM endings.etag
            AND done.size_bytes IS NOT DISTINCT FROM endings.size_bytes
            AND done.modified_at IS NOT DISTINCT FROM endings.modified_at)"""
    )


def _write_plan(
    con: duckdb.DuckDBPyConnection, source: Source, fs: AbstractFileSystem, root: str, plan_dir: str
) -> Iterator[Work]:
    todo = con.sql("SELECT * EXCLUDE (seq) FROM planned LEFT JOIN named USING (seq) ORDER BY seq")
    for index, pieces in groupby(_pieces(todo.to_arrow_reader(BATCH_ROWS)), key=lambda piece: piece[0]):
        rows, commit = pa.concat_tables([piece for _, piece in pieces]), source.commits[index]
        rows = rows.append_column("path", pa.repeat(commit.files[0].path, len(rows)))
        file = f"{plan_dir}/part-{index:05d}.parquet"
        write_whole(fs, LakePaths(root).full(file), in_row_groups([plan_rows(rows)]))
        yield Work(commit, file, len(rows))


def _pieces(batches: pa.RecordBatchReader) -> Iterator[tuple[int, pa.Table]]:
    """Yield the index of each commit with a table of the commit's rows; one commit may have several tables."""
    for batch in batches:
        rows = pa.table(batch)
        for index in pc.unique(rows["commit"]).to_pylist():
            yield index, rows.filter(pc.equal(rows["commit"], index)).drop_columns("commit")
