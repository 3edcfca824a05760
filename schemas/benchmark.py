"""What ``camlake benchmark`` measures."""

from typing import Literal

from schemas.config import JobConfig, Precision, option, required

Suite = Literal[
    "stages",
    "end-to-end",
    "peers",
    "boxes",
    "encoding",
    "scale",
    "gpu",
    "reference",
    "label-free",
    "memory",
    "kills",
]


class BenchmarkConfig(JobConfig):
    """What ``camlake benchmark`` measures."""

    suite: Suite = required(
        "stages (each alone, and its limit), end-to-end (images/s against a plain loop), peers (against Ray's own"
        " pattern, Daft, a DataLoader, pytorch-grad-cam, torch-cam), boxes (exact against OpenCV), encoding (of the"
        " tables: size, write and query time), scale (a simulated cluster), gpu, reference (published scores),"
        " label-free (what resolutions, views and methods bring and cost), memory (of the driver), or kills (five times"
        " kill -9)"
    )
    images: str | None = option(None, "folder of photographs; default: rendered pictures of 500×375", "Options")
    truth: str | None = option(None, "file of true boxes of these photographs (reference, label-free)", "Options")
    model: str = option("squeezenet1_1", "network by name", "Options")
    weights: str | None = option(None, "its weights; default: random ones where scores don't matter", "Options")
    precision: Precision = option(
        "auto",
        "number type of the networks of all sides; auto: as annotate (end-to-end, peers, gpu), fp32 (reference)",
        "Options",
    )
    count: int = option(2000, "images of a run; photographs are repeated under new names", "Options", ge=16)
    repeats: int = option(3, "interleaved runs of each side", "Options", ge=1, le=20)
    result: str | None = option(None, "JSON file for the figures, with machine, versions and commit", "Options")
