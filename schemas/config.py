"""The base of every job's configuration: each field is an option, a YAML key and a help text at once."""

import difflib
from typing import Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from schemas.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _split(value: Any) -> Any:
    """Turn "a,b" into ("a", "b"), and one number into a tuple of it: the command line gives lists so."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) else value


COMMA_SEPARATED = BeforeValidator(_split)
"""Belongs on the type of an option that takes a list."""


def option(default: Any, about: str, group: str, **limits: Any) -> Any:
    """Declare a configuration field with its help text and the heading it stands under in ``--help``."""
    return Field(default, description=about, json_schema_extra={"group": group}, **limits)


def required(about: str, *, flag: bool = False) -> Any:
    """Declare a configuration field that has no default: an argument of the command, or with ``flag`` an option."""
    return Field(description=about, json_schema_extra={"group": "Options", "flag": flag})


class JobConfig(BaseModel):
    """A frozen, strict configuration: unknown keys are refused, and the message names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def resolve(cls, values: dict[str, Any]) -> Self:
        """Return the configuration of ``values``; raises UsageError, one line, for the first value that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(cls._first_problem(error)) from error

    @classmethod
    def is_argument(cls, name: str) -> bool:
        """Return whether the command takes this field by position."""
        field = cls.model_fields[name]
        extra = field.json_schema_extra
        return field.is_required() and not (isinstance(extra, dict) and extra.get("flag"))

    @classmethod
    def _first_problem(cls, error: ValidationError) -> str:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            known = list(cls.model_fields)
            near = difflib.get_close_matches(name, known, n=1)
            return f"unknown option {name!r}; " + (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            )
        shown = name.upper() if name and cls.is_argument(name) else "--" + name.replace("_", "-")
        if problem["type"] == "missing":
            return f"{shown} is missing"
        message = problem["msg"].removeprefix("Value error, ")
        return f"{shown} {problem['input']!r}: {message}" if name else message


class StorageConfig(JobConfig):
    """How camlake reaches object storage; credentials themselves come from the usual places, never from here."""

    endpoint_url: str | None = option(None, "URL of an S3-compatible store", "Storage")
    profile: str | None = option(None, "profile of the AWS credentials file", "Storage")
    anonymous: bool = option(False, "read the input without credentials (public buckets)", "Storage")

    @property
    def storage(self) -> "StorageConfig":
        """Return only the fields of StorageConfig, which every worker needs of a job's configuration."""
        return StorageConfig(**{name: getattr(self, name) for name in StorageConfig.model_fields})
