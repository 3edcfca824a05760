"""The values that Ray sends to the workers of a run."""

from dataclasses import dataclass

from pipeline.annotate.annotate_stage import AnnotateSpec
from pipeline.annotate.commit_stage import CommitStage
from pipeline.annotate.decode_stage import DecodeSpec
from pipeline.annotate.image_reader import ImageReader
from pipeline.annotate.model import Model
from pipeline.annotate.resources import Compute, images_per_commit
from pipeline.annotate.spec import annotate_spec, decode_spec, row_bytes
from pipeline.storage.lake.run import OpenRun
from schemas.options.annotate import AnnotateConfig
from schemas.tables import network_types, say_score, written_schemas


@dataclass(frozen=True)
class Job:
    """All values that the stages need; Ray can send each of them to every worker."""

    reader: ImageReader
    decode: DecodeSpec
    annotate: AnnotateSpec
    commit: CommitStage
    compute: Compute


def make_job(config: AnnotateConfig, model: Model, run: OpenRun, compute: Compute, n_images: int) -> Job:
    """Return the values for the workers of an open run of ``n_images`` planned inputs."""
    types = network_types(model.network.channels, config.feature_type)
    annotating = annotate_spec(config, model, compute.runtime, run.calibration)
    schemas = say_score(written_schemas(config.outputs, types), None if run.calibration else annotating.right_share)
    return Job(
        reader=ImageReader(config.storage, config.out, config.max_bytes),
        decode=decode_spec(config, model),
        annotate=annotating,
        commit=CommitStage(
            run.committer(schemas),
            annotating.outputs,
            images_per_commit(config, n_images, compute.actors[1], row_bytes(config, model)),
            annotating.every_map_has_a_box,
        ),
        compute=compute,
    )
