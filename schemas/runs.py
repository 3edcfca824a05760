"""What a run writes about itself under ``_runs/<run_id>/``: lineage, commit records, the final manifest."""

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, field_validator

from schemas.tables import SCHEMA_VERSION

_RULE_OF_COMPONENTS = {"largest": "paper", "all": "all-components"}


class Record(BaseModel):
    """A JSON document of a run; read back leniently, so that an older camlake reads a newer one's."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DataFile(Record):
    """A Parquet file that a commit made part of the dataset."""

    table: str
    path: str
    """Relative to the output, with ``/``."""
    rows: int
    size_bytes: int


class CommitRecord(Record):
    """Makes the files of one write task part of the dataset; written after them."""

    run_id: str
    task: str
    images: int
    rejected: int
    maps_without_box: int = 0
    """Maps with no positive value: the paper's rule gives no box."""
    files: tuple[DataFile, ...]


class Lineage(Record):
    """Where a run's rows come from."""

    camlake_version: str
    code_version: str | None
    """Git commit of the working copy, null for an installed package."""
    python_version: str
    packages: dict[str, str]
    model: str
    model_digest: str
    """SHA-256 over architecture, weights and preprocessing; its first 8 digits stand in the partition."""
    weights: str
    weights_sha256: str
    parameters: int
    classes: int
    preprocessing: dict[str, Any]
    source: str | None = None
    """Of a rebox: the output whose stored maps the boxes are cut from."""
    source_runs: tuple[str, ...] = ()
    """Its runs, oldest first."""


class Counts(Record):
    """The run's account: listed = left_out + already_done + planned, and planned = annotated + rejected."""

    listed: int = 0
    duplicates: int = 0
    """Inputs that name a uri a second time; counted once in ``listed``."""
    skipped_files: int = 0
    """Files of the input that are no images by their names: see ``skipped_by_kind``."""
    skipped_by_kind: dict[str, int] = {}
    """These files by kind: an extension, ``hidden file``, ``hidden folder``, ``no extension``, ``special file``, ..."""
    left_out: int = 0
    """By --limit and --sample."""
    already_done: int = 0
    planned: int = 0
    annotated: int = 0
    rejected: int = 0
    boxes: int = 0
    maps_without_box: int = 0
    rejected_by_reason: dict[str, int] = {}


class RunManifest(Record):
    """The last word on a run: ``running`` at its start, ``complete`` or ``interrupted`` at its end."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    status: Literal["running", "complete", "interrupted"]
    model: str
    """Value of the ``model`` partition: <name>-<digest8>."""
    date: str
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    config: dict[str, Any]
    settings: dict[str, Any]
    lineage: Lineage
    counts: Counts = Counts()
    files: tuple[DataFile, ...] = ()
    """Every committed file; filled at the end, so that later runs need not read the commit records."""

    @field_validator("settings")
    @classmethod
    def _by_todays_names(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings with ``box_rule``, which was called ``components`` once."""
        if "components" not in settings:
            return settings
        rest = {name: value for name, value in settings.items() if name != "components"}
        return {"box_rule": _RULE_OF_COMPONENTS[settings["components"]], **rest}


def spelled(value: Any) -> str:
    """Return a setting as its option takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
