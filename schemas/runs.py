"""The documents of a run under ``_runs/<run_id>/``: lineage, commit records, the manifest."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, field_validator
from pydantic.dataclasses import dataclass

from schemas.reasons import Reason
from schemas.tables import SCHEMA_VERSION

TOMBSTONES = (Reason.DELETED, Reason.RESTORED)
"""Reasons of rows in ``quarantine`` that hide annotated rows, or show them again."""
_RULE_OF_COMPONENTS = {"largest": "paper", "all": "all-components"}


def say_kinds(skipped: Mapping[str, int], most: int = 5) -> str:
    """Return kinds of skipped files and their numbers as text, the most frequent kinds first: "3 .txt, 1 .json"."""
    by_number = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {kind}" for kind, count in by_number[:most]]
    more = len(skipped) - len(shown)
    return ", ".join([*shown, f"{more} more kinds"] if more else shown)


class Record(BaseModel):
    """A JSON document of a run. Unknown keys are ignored, so that an older camlake reads documents of a newer one."""

    model_config = ConfigDict(frozen=True, extra="ignore")


DIGEST_BYTES = 16
"""Length of the BLAKE2b digest of a data file."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="ignore"))
class DataFile:
    """A committed Parquet file. An output has hundreds of thousands of them in its life, so that it is small."""

    table: str
    path: str
    """Path of the file relative to the output, with ``/``."""
    rows: int
    size_bytes: int
    digest: str | None = None
    """BLAKE2b of the content, in hex. Version 0.1 wrote none; its file names end with a BLAKE2b of four bytes."""


class CommitRecord(Record):
    """The record that makes the files of one write task part of the dataset. It is written after the files."""

    run_id: str
    task: str
    images: int
    rejected: int
    maps_without_box: int = 0
    """Maps with no positive value, for which the paper's rule gives no box."""
    retries: int = 0
    """Requests to stores that the committing process had to repeat since its last commit."""
    files: tuple[DataFile, ...]

    @classmethod
    def of(cls, run_id: str, task: str, files: Iterable[DataFile]) -> Self:
        """Return the record of ``files``, with the images and rejected inputs that they have rows of."""
        files = tuple(files)
        rows = {table: sum(file.rows for file in files if file.table == table) for table in ("images", "quarantine")}
        return cls(run_id=run_id, task=task, images=rows["images"], rejected=rows["quarantine"], files=files)


class Compaction(Record):
    """The record that puts merged commits of one model in the place of others. It is written after their files.

    The replaced files stay for a grace period, for readers that opened the output before. Until then the names of the
    new files begin with a dot, so that whoever reads all files of a folder meets no row twice. A later run removes the
    old files and gives the new ones their names.
    """

    compaction_id: str
    model: str
    since: AwareDatetime
    """When the files that are replaced now ceased to count."""
    grace_s: float
    """Seconds for which replaced files stay after that."""
    shown: bool = False
    """Whether the replaced files are gone and the new ones have their names."""
    commits: tuple[CommitRecord, ...]
    """The commits that count from then on."""
    replaced: tuple[str, ...]
    """The commits that no longer count, each as <run_id>/<task>."""
    replaced_files: tuple[str, ...]
    """The files that no longer count; paths relative to the output."""
    dropped: DataFile | None = None
    """The file that lists the endings whose rows were dropped; None where none were."""

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Return the files of the new commits."""
        return tuple(file for record in self.commits for file in record.files)

    @property
    def ends_at(self) -> datetime:
        """Return the end of the grace period of the files that are replaced now."""
        return self.since + timedelta(seconds=self.grace_s)

    def is_over(self, now: datetime) -> bool:
        """Return whether the grace period has ended."""
        return now >= self.ends_at


class Lineage(Record):
    """The software, network and weights that made a run's rows."""

    camlake_version: str
    code_version: str | None
    """Git commit of the working copy, null for an installed package."""
    python_version: str
    packages: dict[str, str]
    model: str
    model_digest: str
    """SHA-256 over architecture, weights, preprocessing and head; the name of the partition has its first 8 digits."""
    weights: str
    weights_sha256: str
    parameters: int
    classes: int
    preprocessing: dict[str, Any]
    foreground: str | None = None
    """Digest of the figure/ground direction with which the maps were fused; null: boxes come from class maps alone."""
    source: str | None = None
    """URL of the output from whose stored maps a run of rebox or localize made its rows; null for other runs."""
    source_runs: tuple[str, ...] = ()
    """The runs of that output, oldest first."""
    head: str | None = None
    """Digest of the head whose classes were mapped in the place of the network's own; null for the network's own."""
    backbone: str | None = None
    """``model_digest`` of the network without ``head``; null where there is no head."""

    @property
    def backbone_digest(self) -> str:
        """Return the digest of the network that gave the feature maps, whatever head was behind them."""
        return self.backbone or self.model_digest


class Counts(Record):
    """The counts of a run: listed + hidden = left_out + already_done + planned.

    At the end of a run planned = annotated + rejected.
    """

    listed: int = 0
    duplicates: int = 0
    """Inputs that repeat the uri of another input; ``listed`` does not count them."""
    skipped_files: int = 0
    """Files of the input that are not images by their names; see ``skipped_by_kind``."""
    skipped_by_kind: dict[str, int] = {}
    """These files by kind: an extension, ``hidden file``, ``hidden folder``, ``no extension``, ``special file``, ..."""
    left_out: int = 0
    """Inputs that --limit and --sample left out."""
    already_done: int = 0
    planned: int = 0
    missing: int = 0
    """Annotated images of the output that INPUT no longer has."""
    hidden: int = 0
    """Those of them that --on-deleted hide hid: part of ``planned`` and ``rejected``, not of ``listed``."""
    restored: int = 0
    """Hidden images that INPUT has again as they were: part of ``listed``, ``planned`` and ``rejected``."""
    annotated: int = 0
    rejected: int = 0
    boxes: int = 0
    maps_without_box: int = 0
    rejected_by_reason: dict[str, int] = {}

    @property
    def refused(self) -> dict[str, int]:
        """Return the listed inputs that could not be annotated, counted by reason; deleted images are none of them."""
        return {code: rows for code, rows in self.rejected_by_reason.items() if code not in TOMBSTONES}

    @property
    def deleted_sentence(self) -> str:
        """Return in one line which images INPUT lost and has again; an empty text where there are none."""
        lost = f"{self.missing} annotated {'image is' if self.missing == 1 else 'images are'} no longer in INPUT"
        said = [f"{lost}: {'now hidden' if self.hidden else 'kept (--on-deleted hide hides)'}"] if self.missing else []
        said += [f"{self.restored} hidden before, now in INPUT again: shown"] if self.restored else []
        return "; ".join(said)

    @property
    def skipped_sentence(self) -> str:
        """Return a line with the kinds and numbers of skipped files; empty where no file was skipped."""
        files = f"{self.skipped_files} {'file' if self.skipped_files == 1 else 'files'}"
        return f"skipped {files} as no images: {say_kinds(self.skipped_by_kind)}" if self.skipped_by_kind else ""

    @property
    def duplicates_sentence(self) -> str:
        """Return a line with the number of inputs that were listed again; empty where each was listed once."""
        if not self.duplicates:
            return ""
        again = f"{self.duplicates} {'input is' if self.duplicates == 1 else 'inputs are'} listed again"
        return f"{again}: what is listed twice counts once, the first time (a member of a shard the last time)"


class RunSummary(Record):
    """What the work of a run took; earlier versions wrote none."""

    seconds: float
    """From the start of the engine to the last commit."""
    images_per_s: float
    """Images annotated or rejected in these seconds."""
    stage_images_per_s: dict[str, float] = {}
    """What the workers of a stage would do if they had nothing else to do, for each stage whose time is measured."""
    networks_busy: float | None = None
    """Share of these seconds in which the networks were busy, between 0 and 1."""
    bytes_in: int = 0
    """Encoded bytes of the images that were read."""
    bytes_out: int = 0
    """Bytes of the committed files."""
    retries: int = 0
    """Requests to stores that were repeated because the store was overloaded, out of order or out of reach."""

    def with_commits(self, commits: Iterable[CommitRecord], retries: int) -> Self:
        """Return the summary with the bytes and the retries of the commits, and with ``retries`` of no commit."""
        records = list(commits)
        written = sum(file.size_bytes for record in records for file in record.files)
        repeated = self.retries + retries + sum(record.retries for record in records)
        return self.model_copy(update={"bytes_out": written, "retries": repeated})

    @property
    def sentence(self) -> str:
        """The figures in one line."""
        alone = ", ".join(f"{stage} {rate:,.1f}" for stage, rate in self.stage_images_per_s.items())
        parts = [
            f"{self.images_per_s:,.1f} images/s in {self.seconds:,.1f} s" + (f" (alone: {alone})" if alone else ""),
            *([f"networks busy {self.networks_busy:.0%}"] if self.networks_busy is not None else []),
            f"{say_bytes(self.bytes_in)} read, {say_bytes(self.bytes_out)} written",
            f"{self.retries} {'request' if self.retries == 1 else 'requests'} repeated",
        ]
        return "; ".join(parts)


def say_bytes(n_bytes: float) -> str:
    """Return a number of bytes as text, in decimal units: "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


class RunManifest(Record):
    """The state of a run: ``running`` from its start on, at its end ``complete`` or ``interrupted``."""

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
    summary: RunSummary | None = None
    files: tuple[DataFile, ...] = ()
    """All committed files. They are added when the run ends, so that later runs need not read the commit records."""

    @field_validator("settings")
    @classmethod
    def _by_todays_names(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings with the key ``box_rule``, which an older version called ``components``."""
        if "components" not in settings:
            return settings
        rest = {name: value for name, value in settings.items() if name != "components"}
        return {"box_rule": _RULE_OF_COMPONENTS[settings["components"]], **rest}


def spelled(value: Any) -> str:
    """Return the value of a setting as a user would write it behind the option."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
