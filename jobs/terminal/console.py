"""The command line of all verbs: options from a configuration class, one-line errors, progress, exit statuses."""

import inspect
import json
import logging
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.annotate.reporter import Advance, progress_bar, progress_lines
from pipeline.annotate.stopping import raising_at_sigterm
from schemas.errors import CamlakeError, Stopped, UsageError
from schemas.options.config import JobConfig
from schemas.url_secrets import shown_value, without_secrets

Config = TypeVar("Config", bound=JobConfig)
APP_OPTIONS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Arguments of ``typer.Typer`` for every command line."""


class Screen:
    """Writes a job's reports as text or JSON lines, and its progress as a bar on a terminal or as log lines elsewhere.

    Results go to standard output, everything else to standard error, so that a job's output can be piped.
    """

    def __init__(self, log_format: Literal["text", "json"] = "text") -> None:
        self.json = log_format == "json"
        width = None if sys.stdout.isatty() else 200
        self.out = Console(file=sys.stdout, width=width, highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str, **facts: Any) -> None:
        """Report a step with ``text``; ``--log-format json`` also writes ``facts``, its values."""
        if self.json:
            self._line(event="message", text=text, **facts)
        else:
            self.err.print(without_secrets(text), markup=False)

    def result(self, text: str, **facts: Any) -> None:
        """Print a result to standard output; ``--log-format json`` also writes ``facts``, its values."""
        if self.json:
            self._line(event="result", text=text, **facts)
        else:
            self.out.print(without_secrets(text), markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table to standard output; columns of numbers are aligned to the right."""
        if self.json:
            self._line(event="table", title=title, rows=[dict(zip(columns, row, strict=True)) for row in rows])
            return
        table = Table(title=Text(title), title_justify="left")
        for index, name in enumerate(columns):
            numeric = all(isinstance(row[index], int | float) for row in rows)
            justify: Literal["left", "right"] = "right" if numeric else "left"
            table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=numeric or index == 0)
        for row in rows:
            table.add_row(
                *(Text(f"{cell:.4g}" if isinstance(cell, float) else without_secrets(str(cell))) for cell in row)
            )
        self.out.print(table)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Show the progress of ``total`` inputs, with inputs/s, time left and rejects."""
        if self.err.is_terminal and not self.json:
            with progress_bar(self.err, what, total) as advance:
                yield advance
        else:
            yield progress_lines(self.say, what, total)

    def _line(self, **facts: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        stream = self.out.file if facts["event"] in {"result", "table"} else sys.stderr
        print(json.dumps({"time": stamp, **_public(facts)}, default=str), file=stream, flush=True)


def _public(value: Any) -> Any:
    """Return ``value`` without the secrets in its texts, so that it can be shown."""
    if isinstance(value, dict):
        return {key: _public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_public(one) for one in value]
    return without_secrets(value) if isinstance(value, str) else value


def verb(
    name: str,
    about: str,
    config_class: type[Config],
    run: Callable[[Config, Screen], None],
    example: str,
) -> Callable[..., None]:
    """Return the function that typer runs as ``camlake NAME``; each field of ``config_class`` is a parameter.

    ``about`` is one sentence for the help texts, ``example`` a complete command.
    """

    def command(**flags: Any) -> None:
        debug, log_format, file = flags.pop("debug"), flags.pop("log_format"), flags.pop("config")
        with reported_errors(debug):
            if log_format not in {"text", "json"}:
                raise UsageError(f"--log-format {shown_value(log_format)}: allowed: text, json")
            given = {key: value for key, value in flags.items() if value is not None}
            run(config_class.resolve({**read_config(file), **given}), Screen(log_format))

    command.__name__ = name
    command.__doc__ = f"{about}\n\nExample: {example}"
    fields = [_parameter(config_class, key, field) for key, field in config_class.model_fields.items()]
    command.__signature__ = inspect.Signature(fields + list(_COMMON.values()))  # type: ignore[attr-defined]
    return command


def read_config(path: str | None) -> dict[str, Any]:
    """Return the options in a YAML job file; raises UsageError where the file can't be read or is no mapping."""
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a path from the command line
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path!r}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path!r}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path!r}: allowed: a mapping of option names to values")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


@contextmanager
def reported_errors(debug: bool = False) -> Iterator[None]:
    """Turn a CamlakeError into one line on standard error and its exit status; with ``debug`` the error is raised."""
    try:
        with raising_at_sigterm():
            yield
    except CamlakeError as error:
        if debug:
            raise
        print(f"camlake: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error
    except KeyboardInterrupt as error:
        print("camlake: stopped; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(Stopped.exit_status) from error
    except Exception as error:  # The outermost edge: an unexpected error also becomes one line.
        if debug:
            raise
        line = without_secrets(" ".join(str(error).split()))
        print(f"camlake: {type(error).__name__}: {line} (--debug shows where)", file=sys.stderr)
        raise typer.Exit(1) from error


def main(app: typer.Typer | Callable[..., None]) -> None:
    """Run a program or one verb, and exit; wrong use gives one line on standard error and exit status 2."""
    if not isinstance(app, typer.Typer):
        single = typer.Typer(add_completion=False, **APP_OPTIONS)
        single.command()(app)
        app = single
    logging.captureWarnings(True)
    try:
        status = app(standalone_mode=False)
    except typer.TyperException as error:
        text = (
            without_secrets(" ".join(error.format_message().split()))
            .replace(". Did you mean", "; did you mean")
            .removesuffix(".")
        )
        if text:  # It is empty after a call without arguments, which has shown the help.
            print(f"camlake: {text}" if text.endswith("?") else f"camlake: {text}; see --help", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status or 0)


def _parameter(config_class: type[JobConfig], name: str, field: FieldInfo) -> inspect.Parameter:
    """Return a field of the configuration as a typer argument or option; pydantic checks the user's value."""
    if config_class.is_argument(name):
        info: Any = typer.Argument(help=field.description, metavar=name.upper(), show_default=False)
        return _keyword(name, Annotated[str | None, info])
    extra: Mapping[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    about = (
        f"{field.description} (required)" if field.is_required() else f"{field.description}{_default(field.default)}"
    )
    flag = "--" + name.replace("_", "-")
    if field.annotation is bool:
        info = typer.Option(f"{flag}/--no-{flag[2:]}", help=about, rich_help_panel=extra["group"], show_default=False)
        return _keyword(name, Annotated[bool | None, info])
    metavar = _metavar(field.annotation)
    info = typer.Option(flag, help=about, rich_help_panel=extra["group"], show_default=False, metavar=metavar)
    return _keyword(name, Annotated[str | None, info])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _default(value: Any) -> str:
    if value is None or value is False or value == "":
        return ""
    return f" (default: {','.join(map(str, value)) if isinstance(value, tuple) else value})"


def _metavar(annotation: Any) -> str:
    """Return the choices or the kind of value that ``--help`` shows behind an option."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) in {types.UnionType, Union}:
        return _metavar(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is tuple:
        return "LIST"
    return {int: "NUMBER", float: "NUMBER"}.get(annotation, "TEXT")


_COMMON: dict[str, inspect.Parameter] = {
    "config": _keyword(
        "config", Annotated[str | None, typer.Option(metavar="FILE", help="YAML file of options; flags win.")]
    ),
    "log_format": inspect.Parameter(
        "log_format",
        inspect.Parameter.KEYWORD_ONLY,
        default="text",
        annotation=Annotated[str, typer.Option(metavar="text|json", help="How messages are written.")],
    ),
    "debug": inspect.Parameter(
        "debug",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
    ),
}
