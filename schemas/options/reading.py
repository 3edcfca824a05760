"""The configurations of ``camlake verify``, ``report``, ``view``, ``evaluate`` and ``runs``, which read an output."""

from typing import Literal, Self

from pydantic import model_validator

from schemas.options.config import LeaseConfig, StorageConfig, argument, file_option, option, required


class VerifyConfig(LeaseConfig):
    """The options of ``camlake verify``."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    input: str | None = argument(
        None, "The input of `camlake annotate`: then it is said too what came, changed and went since"
    )
    repair: bool = option(
        False,
        "set right what can be: commits with lost or changed files are taken back, so that the next `camlake annotate`"
        " works on their images again; manifests are rebuilt, orphans removed",
        "Options",
    )

    @model_validator(mode="after")
    def _check_wait(self) -> Self:
        if self.wait is not None and not self.repair:
            raise ValueError(f"--wait {self.wait}: allowed: with --repair, which alone writes to OUT")
        return self


class RunsConfig(StorageConfig):
    """The options of ``camlake runs``."""

    out: str = required("An output of `camlake annotate`, `rebox` or `localize`: any fsspec URL")
    last: int | None = option(None, "show only so many of the newest runs", "Options", ge=1)
    watch: bool = option(False, "follow the run in progress until it ends", "Options")
    unlock: bool = option(
        False,
        "take the lease from a run that is gone, after its holder was shown; a holder that may be alive keeps it",
        "Options",
    )
    force: bool = option(False, "with --unlock: take it from a living holder too, which then stops", "Options")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.force and not self.unlock:
            raise ValueError("--force: allowed: with --unlock")
        if self.watch and self.unlock:
            raise ValueError("--watch: allowed: without --unlock")
        return self


class ReportConfig(StorageConfig):
    """The options of ``camlake report``."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    page: str | None = option(None, "where the page goes; default: OUT/_reports/report.html", "Options")
    pictures: int = option(
        120, "how many pictures the page shows: a sample over classes, scores and box sizes", "Options", ge=0, le=500
    )
    truth: str | None = file_option(None, "file of true boxes to draw beside the found ones", "Options")
    model: str | None = option(None, "which model's rows; default: the newest run's", "Options")


class ViewConfig(StorageConfig):
    """The options of ``camlake view``."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    model: str | None = option(None, "which model's rows; default: the newest run's", "Options")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: every one, so that others can look too", "Options")
    port: int = option(0, "port to listen on; 0: a free one", "Options", ge=0, le=65535)


class EvaluateConfig(StorageConfig):
    """The options of ``camlake evaluate``."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    truth: str = required(
        "true boxes: CSV or Parquet (file, class_id or label, xmin, ymin, xmax, ymax), COCO JSON, or a folder of ILSVRC"
        " XML or wsolevaluation text files; masks, for PxAP: in COCO JSON, or in files that wsolevaluation's"
        " localization.txt names (image,mask,ignore)",
        flag=True,
        reads=True,
    )
    masks: str | None = file_option(
        None, "folder under which wsolevaluation's mask files lie; default: the folder of TRUTH", "Options"
    )
    labels: str | None = file_option(
        None,
        "file that tells which class of the network a label of the truth means: one class a line, in the order of the"
        " class ids, called by the whole line or, as in ILSVRC's LOC_synset_mapping.txt, by its first word",
        "Options",
    )
    model: str | None = option(None, "which model's rows; default: the newest run's", "Options")
    iou: Literal["half-open", "inclusive"] = option(
        "half-open",
        "how the truth means xmax and ymax: half-open, or the last pixel inside (ILSVRC, wsolevaluation)",
        "Options",
    )
    calibrate: bool = option(
        False,
        "fit box_score on half of the truth's images, report its reliability on the others, and keep it in OUT for the"
        " next `camlake annotate`",
        "Options",
    )
    report: str | None = option(
        None, "folder for scores.json, scores.md and pictures of the curves; default: OUT/_reports", "Options"
    )
