"""The configuration of ``camlake head``."""

from typing import Literal, Self

from pydantic import model_validator

from schemas.options.config import StorageConfig, file_option, option, required
from schemas.url_secrets import safe_url

HeadAction = Literal["fit", "show", "apply", "top"]
_NEEDED: dict[HeadAction, tuple[str, ...]] = {"fit": ("labels", "out"), "show": (), "apply": ("head", "out"), "top": ()}
_OPTIONAL: dict[HeadAction, set[str]] = {
    "fit": {"kind", "model"},
    "show": set(),
    "apply": {"model"},
    "top": {"head", "channel", "images", "out", "model"},
}
_SUFFIXES: dict[HeadAction, tuple[str, ...]] = {
    "fit": (".safetensors",),
    "apply": (".parquet", ".csv"),
    "top": (".html",),
}


class HeadConfig(StorageConfig):
    """The options of ``camlake head``."""

    action: HeadAction = required(
        "fit: a head on the features of OUT; show: the card of a head; apply: a head to OUT; top: the first images"
        " of OUT by a head or by one feature"
    )
    place: str = required("An output of `camlake annotate` with features; for show a file of `camlake head fit`")
    labels: str | None = file_option(
        None,
        "fit: CSV, Parquet or JSONL with a column uri or image_id and a column label; several labels by ; or in several"
        " rows, none for an image of no class; of a single class, other images count as those without it;"
        " of more than 100,000 labelled images a sample is taken",
        "Options",
    )
    out: str | None = option(
        None,
        "fit: the head, *.safetensors; apply: the probabilities, *.parquet or *.csv; top: a page with the pictures,"
        " their maps and boxes, *.html",
        "Options",
    )
    head: str | None = file_option(None, "apply, top: a file of `camlake head fit`", "Options")
    channel: int | None = option(None, "top: the number of a feature, from 0, in the place of a head", "Options", ge=0)
    images: int = option(24, "top: how many images", "Options", ge=1, le=1000)
    kind: Literal["logistic", "svm"] = option("logistic", "fit: logistic regression or linear SVM", "Options")
    model: str | None = option(None, "which model's rows; default: the head's, or the newest run's", "Options")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name for name in ("labels", "out", "head", "channel", "model") if getattr(self, name) is not None}
        given |= {"kind", "images"} & self.model_fields_set
        missing = [f"--{name}" for name in _NEEDED[self.action] if name not in given]
        if missing:
            raise ValueError(f"camlake head {self.action}: needs {' and '.join(missing)}")
        strange = sorted(given - set(_NEEDED[self.action]) - _OPTIONAL[self.action])
        if strange:
            raise ValueError(f"--{strange[0]}: not an option of camlake head {self.action}")
        if self.action == "top" and (self.head is None) == (self.channel is None):
            raise ValueError("camlake head top: needs one of --head and --channel")
        suffixes = _SUFFIXES.get(self.action, ())
        if self.out and not self.out.endswith(suffixes):
            raise ValueError(f"--out {safe_url(self.out)}: allowed: a {' or '.join(suffixes)} file")
        return self
