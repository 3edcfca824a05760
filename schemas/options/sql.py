"""The configuration of ``camlake sql``."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from schemas.options.config import COMMA_SEPARATED, StorageConfig, argument, option, required

Engine = Literal["athena", "trino", "spark", "duckdb"]
ResultFormat = Literal["table", "csv", "json", "parquet"]

_JOIN = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.+)", re.DOTALL)


def _checked(parts: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [part for part in parts if not _JOIN.fullmatch(part)]
    if wrong:
        raise ValueError("allowed: NAME=FILE,NAME=FILE with names of letters, digits and _")
    names = [part.partition("=")[0].lower() for part in parts]
    if len(set(names)) < len(names):
        raise ValueError("allowed: each NAME once")
    return parts


class SqlConfig(StorageConfig):
    """The options of ``camlake sql``."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    query: str | None = argument(
        None,
        "A SELECT over images, boxes, heatmaps, features, feature_maps, foreground, quarantine and runs, which have the"
        " current rows only",
    )
    model: str | None = option(
        None, "which model's rows; needed where OUT has several; '*' for the rows of all", "Query"
    )
    join: Annotated[tuple[str, ...], COMMA_SEPARATED, AfterValidator(_checked)] = option(
        (), "own tables beside those of OUT: NAME=FILE of CSV, Parquet or JSON, comma-separated", "Query"
    )
    format: ResultFormat | None = option(None, "how the result is written; default: by --to, or a table", "Result")
    to: str | None = option(None, "file of the result, any fsspec URL outside of OUT; default: the terminal", "Result")
    rows: int = option(40, "most rows that a table on the terminal shows", "Result", ge=1)
    shell: bool = option(False, "read queries line by line, each ended by a semicolon", "Other ways")
    ddl: Engine | None = option(
        None, "print the statements that make tables and views of OUT in another engine", "Other ways"
    )

    @property
    def joined(self) -> dict[str, str]:
        """Return the files of ``join`` by their names."""
        found = [_JOIN.fullmatch(part) for part in self.join]
        return {match[1]: match[2] for match in found if match}

    @property
    def result_format(self) -> ResultFormat:
        """Return the format of the result: the given one, that of the ending of ``to``, or a table."""
        endings: dict[str, ResultFormat] = {"csv": "csv", "json": "json", "parquet": "parquet", "pq": "parquet"}
        return self.format or endings.get((self.to or "").rpartition(".")[2].lower(), "table")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        ways = [name for name in ("query", "shell", "ddl") if getattr(self, name)]
        if len(ways) != 1:
            raise ValueError('allowed: one of a query ("SELECT ..."), --shell and --ddl')
        if self.ddl and (given := sorted({"join", "format", "rows"} & self.model_fields_set)):
            raise ValueError(f"--{given[0]}: allowed with a query or --shell, not with --ddl")
        if self.to and (self.shell or self.ddl):
            raise ValueError("--to: allowed with a query")
        if self.to and self.result_format == "table":
            raise ValueError(f"--to {self.to!r}: allowed: a name that ends with .csv, .json or .parquet, or --format")
        if self.result_format == "parquet" and not self.to:
            raise ValueError("--format parquet: allowed: together with --to FILE")
        return self
