"""What travels to the workers of a run on Ray."""

from dataclasses import dataclass

from pipeline.annotate.annotate_stage import AnnotateSpec
from pipeline.annotate.decode_stage import DecodeSpec
from pipeline.annotate.model import Model
from pipeline.annotate.reader import ImageReader
from pipeline.annotate.spec import annotate_spec, decode_spec, row_bytes
from pipeline.graph.resources import Compute, images_per_commit
from pipeline.storage.lake.commit import Committer
from pipeline.storage.lake.run import OpenRun
from schemas.annotate import AnnotateConfig
from schemas.tables import OPTIONAL_TABLES, TABLES, table_schema


@dataclass(frozen=True)
class Job:
    """All that the stages need to know, in plain values that travel to every worker."""

    reader: ImageReader
    images_per_commit: int
    decode: DecodeSpec
    annotate: AnnotateSpec
    committer: Committer
    compute: Compute


def make_job(config: AnnotateConfig, model: Model, run: OpenRun, compute: Compute, n_images: int) -> Job:
    """Return what travels to the workers."""
    tables = [table for table in TABLES if table not in OPTIONAL_TABLES or table in config.outputs]
    schemas = {table: table_schema(table, model.network.channels, config.feature_type) for table in tables}
    return Job(
        reader=ImageReader(config.storage, config.out, config.max_bytes),
        images_per_commit=images_per_commit(config, n_images, compute.actors[1], row_bytes(config, model)),
        decode=decode_spec(config, model),
        annotate=annotate_spec(config, model, compute.runtime, run.calibration),
        committer=run.committer(schemas),
        compute=compute,
    )
