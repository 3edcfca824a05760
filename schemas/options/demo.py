"""The configuration of ``camlake demo``."""

from schemas.options.config import JobConfig, option


class DemoConfig(JobConfig):
    """The options of ``camlake demo``."""

    folder: str = option("camlake-demo", "where pictures, tables and the page go", "Options")
    images: int = option(120, "pictures to render, beside two broken files", "Options", ge=10, le=10_000)
    seed: int = option(0, "seed of the pictures", "Options", ge=0)
