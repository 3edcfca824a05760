"""The configuration of ``camlake head``."""

from typing import Literal, Self

from pydantic import model_validator

from schemas.options.config import StorageConfig, option, required
from schemas.url_secrets import safe_url

HeadAction = Literal["fit", "show", "apply"]
_NEEDED: dict[HeadAction, tuple[str, ...]] = {"fit": ("labels", "out"), "show": (), "apply": ("head", "out")}
_SUFFIXES: dict[HeadAction, tuple[str, ...]] = {"fit": (".safetensors",), "apply": (".parquet", ".csv")}


class HeadConfig(StorageConfig):
    """The options of ``camlake head``."""

    action: HeadAction = required("fit: a head on the features of OUT; show: the card of a head; apply: a head to OUT")
    place: str = required("An output of `camlake annotate` with features; for show a file of `camlake head fit`")
    labels: str | None = option(
        None,
        "fit: CSV, Parquet or JSONL with a column uri or image_id and a column label; several labels by ; or in several"
        " rows, none for an image of no class; of a single class, other images count as those without it",
        "Options",
    )
    out: str | None = option(
        None, "fit: the head, *.safetensors; apply: the probabilities, *.parquet or *.csv", "Options"
    )
    head: str | None = option(None, "apply: a file of `camlake head fit`", "Options")
    kind: Literal["logistic", "svm"] = option("logistic", "fit: logistic regression or linear SVM", "Options")
    model: str | None = option(None, "which model's rows; default: the head's, or the newest run's", "Options")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name for name in ("labels", "out", "head", "model") if getattr(self, name) is not None}
        given |= {"kind"} & self.model_fields_set
        needed = set(_NEEDED[self.action])
        missing = [f"--{name}" for name in _NEEDED[self.action] if name not in given]
        if missing:
            raise ValueError(f"camlake head {self.action}: needs {' and '.join(missing)}")
        optional = {"fit": {"kind", "model"}, "apply": {"model"}, "show": set()}[self.action]
        strange = sorted(given - needed - optional)
        if strange:
            raise ValueError(f"--{strange[0]}: not an option of camlake head {self.action}")
        suffixes = _SUFFIXES.get(self.action, ())
        if self.out and not self.out.endswith(suffixes):
            raise ValueError(f"--out {safe_url(self.out)}: allowed: a {' or '.join(suffixes)} file")
        return self
