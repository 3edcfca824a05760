"""Makes outputs of many images out of an output of few, without a network."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.run import RunRequest, open_run
from schemas.options.config import StorageConfig
from schemas.runs import Counts
from schemas.tables import network_types, written_schemas

IMAGES_PER_COMMIT = 2048


def multiply(source: Path, out: Path, images: int) -> None:
    """Write the tables of ``source``, repeated under new names up to ``images`` images, as an output of their own."""
    names = ("images", "features", "feature_maps", "foreground")
    with camlake.open(str(source)) as lake:
        (run,) = lake.runs
        tables = {name: lake.arrow(name).drop_columns(["model", "date"]).sort_by("image_id") for name in names}
    channels = len(tables["features"]["feature"][0])
    schemas = written_schemas(run.settings["outputs"], network_types(channels, "float32"))
    request = RunRequest(str(out), StorageConfig(), run.model, run.settings, run.config, run.lineage)
    fs, root = connect(str(source), StorageConfig())
    kept = LakePaths(root).foreground_file(run.model)
    with open_run(request) as opened:
        begun = opened.begin(Counts(listed=images, planned=images))
        committer = begun.committer(schemas)
        fs.makedirs(str(Path(LakePaths(begun.root).foreground_file(run.model)).parent), exist_ok=True)
        fs.copy(kept, LakePaths(begun.root).foreground_file(run.model))
        for task, start in enumerate(range(0, images, IMAGES_PER_COMMIT)):
            rows = np.arange(start, min(start + IMAGES_PER_COMMIT, images))
            place = pa.array(rows % len(tables["images"]))
            ids = pa.array([f"{number:032x}" for number in rows])
            made = {name: renamed(table.take(place), ids, begun.manifest.run_id) for name, table in tables.items()}
            committer.commit(f"{task:06d}", made)
        begun.finish()


def renamed(rows: pa.Table, ids: pa.Array, run_id: str) -> pa.Table:
    """Return rows with other image ids and run ids, and with uris that follow from the ids."""
    changed = {"image_id": ids, "run_id": pa.repeat(run_id, len(rows)), "uri": ids}
    for name in rows.schema.names:
        if name in changed:
            rows = rows.set_column(rows.schema.get_field_index(name), name, changed[name])
    return rows
