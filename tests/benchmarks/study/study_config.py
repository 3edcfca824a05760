"""The configuration of ``python -m tests.benchmarks.study``."""

from typing import Any, Self

from pydantic import model_validator

from schemas.options.config import Device, JobConfig, Precision, option


class StudyConfig(JobConfig):
    """The networks, the scenes, the length of the trainings and the folder of a study."""

    folder: str = option("camlake-study", "where scenes, weights and results go; a later run goes on there", "Run")
    minutes: float = option(45.0, "begin no training after so many minutes; what is begun is finished", "Run", gt=0)
    workers: int = option(2, "trainings side by side, each on one CPU thread; on CUDA they share the GPU", "Run", ge=1)
    device: Device = option("auto", "where the networks learn; auto takes CUDA where it is", "Run")
    precision: Precision = option(
        "auto", "number type of the layers while they learn, weights aside; auto: bf16 where it is native", "Run"
    )

    networks: str = option("", "only these networks, comma-separated; default: all", "Study")
    seeds: int = option(3, "trainings of each network: first values, order and mirroring", "Study", ge=1, le=20)
    scenes: int = option(6000, "scenes to learn from", "Study", ge=20)
    tests: int = option(500, "scenes to test on; as many more choose thresholds, and show the hints", "Study", ge=20)
    correlation: float = option(
        0.5, "chance that a scene to learn from has its class's own background for certain", "Study", ge=0, le=1
    )
    size: int = option(96, "side of the scenes in pixels", "Study", ge=48, le=1024)
    cells: int = option(6, "side of the smallest map; networks that shrink more see the scenes enlarged", "Study", ge=2)
    width: float = option(0.125, "multiplies the channels of every network", "Study", gt=0)
    epochs: int = option(10, "runs through the scenes", "Study", ge=1)
    batch_size: int = option(32, "scenes of a step", "Study", ge=2)
    lr: float = option(6e-4, "highest learning rate, the same for all networks", "Study", gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size > self.scenes:
            raise ValueError(f"--batch-size {self.batch_size}: allowed: up to --scenes {self.scenes}")
        return self

    def settings(self) -> dict[str, Any]:
        """Return the options that determine the numbers; all trainings in a folder have the same ones."""
        aside = {"folder", "minutes", "workers", "networks", "seeds", "device"}
        return self.model_dump(mode="json", exclude=aside)
