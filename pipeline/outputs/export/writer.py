"""What a format is: a file of ``formats/`` with the constant FORMAT, found by the name of the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.outputs.export.batches import Batch
from pipeline.outputs.export.classes import Classes
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.export_formats import format_module
from schemas.errors import UsageError
from schemas.options.export import ExportConfig, ImageMode
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url


@dataclass(frozen=True)
class ExportJob:
    """What the writers of an export know of it."""

    config: ExportConfig
    run: RunManifest
    """The model's last run."""
    classes: Classes
    images: ImageMode

    @property
    def about(self) -> str:
        """Where the labels come from, in one sentence."""
        return f"Weak localization labels of {self.run.model}, exported by camlake from {safe_url(self.config.out)}"


class Written(NamedTuple):
    """How much of a split was written."""

    images: int = 0
    boxes: int = 0


class Writer(Protocol):
    """Writes one split; the constructor takes job, destination and the split's name."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None: ...

    def write(self, batch: Batch) -> None:
        """Write some images; all batches together are the split."""

    def close(self) -> None:
        """Write what is left; nothing follows."""


def nothing(job: ExportJob, dest: Destination, written: Mapping[str, Written]) -> None:
    """Do nothing: the function ``finish`` of a format whose splits need no common file."""


@dataclass(frozen=True)
class Format:
    """A format; FORMAT of each file of ``formats/``."""

    writer: type[Writer]
    images: tuple[ImageMode, ...]
    """What can be done with pictures; the first is the default."""
    folder: str = ""
    """Where linked and copied pictures lie; ``{split}`` stands for the split's name."""
    masks: bool = False
    """Whether boxes can have masks."""
    finish: Callable[[ExportJob, Destination, Mapping[str, Written]], None] = nothing
    """Writes the files that tell of all splits; what a reader opens first comes last."""
    notes: tuple[str, ...] = ()
    """What the format can't say of the rows, for the user."""


def load_format(name: str) -> Format:
    """Return a format by its name; raises UsageError for an unknown one."""
    found: Format = format_module(name).FORMAT
    return found


def image_mode(name: str, config: ExportConfig) -> ImageMode:
    """Return what is done with pictures; raises UsageError for what the format can't."""
    allowed = load_format(name).images
    if config.images is not None and config.images not in allowed:
        raise UsageError(f"--images {config.images!r}: allowed with --to {name}: {', '.join(allowed)}")
    return config.images or allowed[0]
