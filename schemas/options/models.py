"""The configuration of ``camlake models``."""

from schemas.options.config import JobConfig, option


class ModelsConfig(JobConfig):
    """The options of ``camlake models``."""

    name: str = option("", "only networks whose name contains this", "Options")
