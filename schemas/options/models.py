"""What ``camlake models`` lists."""

from schemas.options.config import JobConfig, option


class ModelsConfig(JobConfig):
    """What ``camlake models`` lists."""

    name: str = option("", "only networks whose name contains this", "Options")
