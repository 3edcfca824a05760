"""The configuration of ``camlake benchmark`` and of other measurements."""

from typing import Literal

from schemas.options.config import JobConfig, Precision, option, required

Suite = Literal["stages", "memory", "gpu"]


class MeasureConfig(JobConfig):
    """The photographs, the network and the repetitions of a measurement."""

    images: str | None = option(None, "folder of photographs; default: rendered pictures of 500×375", "Options")
    model: str = option("squeezenet1_1", "network by name", "Options")
    weights: str | None = option(None, "its weights; default: random ones where scores don't matter", "Options")
    precision: Precision = option(
        "auto", "number type of the networks of all sides; auto: the one that annotate takes", "Options"
    )
    count: int = option(2000, "images of a run; photographs are repeated under new names", "Options", ge=16)
    repeats: int = option(3, "interleaved runs of each side", "Options", ge=1, le=20)
    result: str | None = option(None, "JSON file for the figures, with machine, versions and commit", "Options")


class BenchmarkConfig(MeasureConfig):
    """The options of ``camlake benchmark``."""

    suite: Suite = required(
        "stages (each alone, and which one limits this machine), memory (of the driver as inputs grow), or gpu"
    )
