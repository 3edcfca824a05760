"""The base of every job's configuration: each field is an option, a YAML key and a help text."""

import difflib
import math
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from schemas.errors import UsageError
from schemas.url_secrets import shown_value

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _split(value: Any) -> Any:
    """Turn "a,b" into ("a", "b") and one number into a tuple, because the command line passes lists as such values."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) else value


def _seconds_or_forever(value: Any) -> Any:
    """Turn "90" into 90.0; raises ValueError for what is neither a number of seconds nor ``forever``."""
    if value is None or value == "forever":
        return value
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError("allowed: seconds, 0 or more, or forever")
    return seconds


def _web_url(value: SecretStr | None) -> SecretStr | None:
    """Return the URL of a webhook; raises ValueError, without the URL, for what is none."""
    if value is None:
        return None
    try:
        parts = urlsplit(value.get_secret_value())
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that don't match, a port that is no number
        sound = False
    if not sound:
        raise ValueError("allowed: an http:// or https:// URL")
    return value


WEB_URL = AfterValidator(_web_url)
"""Annotation for the type of an option that takes the URL of a webhook, which may be a secret."""

COMMA_SEPARATED = BeforeValidator(_split)
"""Annotation for the type of an option that takes a list."""


def option(default: Any, about: str, group: str, **limits: Any) -> Any:
    """Declare a configuration field with its default, its help text and its heading in ``--help``."""
    return Field(default, description=about, json_schema_extra={"group": group}, **limits)


def file_option(default: Any, about: str, group: str) -> Any:
    """Declare a field with the file or folder that the verb reads; a mere word may stand for something else."""
    return Field(default, description=about, json_schema_extra={"group": group, "reads": True})


def required(about: str, *, flag: bool = False, reads: bool = False) -> Any:
    """Declare a configuration field that has no default: an argument of the command, or with ``flag`` an option.

    ``reads``: as in ``file_option``.
    """
    return Field(description=about, json_schema_extra={"group": "Options", "flag": flag, "reads": reads})


def argument(default: Any, about: str) -> Any:
    """Declare an argument of the command that may be left out."""
    return Field(default, description=about, json_schema_extra={"group": "Options", "flag": False})


class JobConfig(BaseModel):
    """A frozen, strict configuration: unknown keys are errors, and the message names the nearest known key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def resolve(cls, values: dict[str, Any]) -> Self:
        """Return the configuration with ``values``.

        Raises UsageError, with a message of one line, for the first wrong value, or for all missing options.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(cls._first_problem(error)) from error

    @classmethod
    def is_argument(cls, name: str) -> bool:
        """Return whether the field is a positional argument of the command."""
        extra = cls.model_fields[name].json_schema_extra
        return isinstance(extra, dict) and extra.get("flag") is False

    def read_files(self) -> dict[str, str]:
        """Return the files and folders that options name for reading, by the option's name on the command line."""
        found = {}
        for name, field in type(self).model_fields.items():
            extra, value = field.json_schema_extra, getattr(self, name)
            if isinstance(extra, dict) and extra.get("reads") and value and ("." in value or "/" in value):
                found[self._shown(name)] = value
        return found

    @classmethod
    def _first_problem(cls, error: ValidationError) -> str:
        problems = error.errors(include_url=False)
        problem = problems[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            known = list(cls.model_fields)
            near = difflib.get_close_matches(name, known, n=1)
            return f"unknown option {name!r}; " + (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            )
        if problem["type"] == "missing":
            missing = [cls._shown(str(each["loc"][0])) for each in problems if each["type"] == "missing"]
            return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        message = problem["msg"].removeprefix("Value error, ")
        shown = f"({len(str(problem['input']))} characters)" if cls._is_secret(name) else shown_value(problem["input"])
        return f"{cls._shown(name)} {shown}: {message}" if name else message

    @classmethod
    def _is_secret(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        return field is not None and field.annotation in (SecretStr, SecretStr | None)

    @classmethod
    def _shown(cls, name: str) -> str:
        """Return the field's name on the command line, such as INPUT or --image-size."""
        return name.upper() if cls.is_argument(name) else "--" + name.replace("_", "-")


class StorageConfig(JobConfig):
    """The options for access to object storage; credentials come from the usual places, never from options."""

    endpoint_url: str | None = option(None, "URL of an S3-compatible store", "Storage")
    profile: str | None = option(None, "profile of the AWS credentials file", "Storage")
    anonymous: bool = option(False, "read the input without credentials (public buckets)", "Storage")

    @property
    def storage(self) -> "StorageConfig":
        """Return only the fields of StorageConfig, the part of a job's configuration that every worker needs."""
        return StorageConfig(**{name: getattr(self, name) for name in StorageConfig.model_fields})


class LeaseConfig(StorageConfig):
    """The options of the verbs that write to an output under its lease."""

    wait: Annotated[float | Literal["forever"] | None, BeforeValidator(_seconds_or_forever)] = option(
        None,
        "wait so many seconds, or forever, while another run holds the output; default: end at once with status 5",
        "Run",
    )

    @property
    def wait_s(self) -> float:
        """Return how long to wait for the lease of the output, in seconds; infinity for ``forever``."""
        return math.inf if self.wait == "forever" else self.wait or 0.0
