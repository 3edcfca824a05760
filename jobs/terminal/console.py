"""The command line of all verbs: options from a configuration class, one-line errors, progress, exit statuses."""

import atexit
import gc
import inspect
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo

from jobs.terminal.screen import Screen
from pipeline.annotate.stopping import raising_at_sigterm
from pipeline.storage.filesystems import refuse_missing_files
from schemas.errors import CamlakeError, Stopped, UsageError
from schemas.options.config import JobConfig, StorageConfig
from schemas.url_secrets import shown_value, without_secrets
from schemas.yaml_text import parse_yaml

__all__ = ["APP_OPTIONS", "Screen", "main", "read_config", "reported_errors", "verb"]

Config = TypeVar("Config", bound=JobConfig)
_STOPPED = "stopped; run the same command again to go on"
APP_OPTIONS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Arguments of ``typer.Typer`` for every command line."""


def verb(
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
        screen = Screen("json" if log_format == "json" else "text")
        with reported_errors(debug, screen):
            if log_format not in {"text", "json"}:
                raise UsageError(f"--log-format {shown_value(log_format)}: allowed: text, json")
            given = {key: value for key, value in flags.items() if value is not None}
            config = config_class.resolve({**read_config(file), **given})
            if isinstance(config, StorageConfig) and (files := config.read_files()):
                refuse_missing_files(files, config)
            run(config, screen)

    command.__doc__ = _without_markup(f"{about}\n\nExample: {example}")
    fields = [_parameter(config_class, key, field) for key, field in config_class.model_fields.items()]
    command.__signature__ = inspect.Signature(fields + list(_COMMON.values()))  # type: ignore[attr-defined]
    return command


def read_config(path: str | None) -> dict[str, Any]:
    """Return the options in a YAML job file; raises UsageError where the file can't be read or is no mapping."""
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a path from the command line
            values = parse_yaml(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path!r}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path!r}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path!r}: allowed: a mapping of option names to values")
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    if len(named) < len(values):
        raise UsageError(f"--config {path!r}: an option stands twice, once with - and once with _")
    return named


@contextmanager
def reported_errors(debug: bool = False, screen: Screen | None = None) -> Iterator[None]:
    """Turn an error into one line on standard error and its exit status; with ``debug`` the error is raised."""
    screen = screen or Screen()
    try:
        with raising_at_sigterm(lambda: _give_up(screen)):
            yield
    except CamlakeError as error:
        if debug:
            raise
        screen.fail(" ".join(str(error).split()), type(error).__name__, error.exit_status)
        raise typer.Exit(error.exit_status) from error
    except KeyboardInterrupt as error:
        screen.fail(_STOPPED, Stopped.__name__, Stopped.exit_status)
        raise typer.Exit(Stopped.exit_status) from error
    except BrokenPipeError:  # The reader of the output has gone, which ``main`` answers.
        raise
    except Exception as error:  # The outermost edge: an unexpected error also becomes one line.
        if debug:
            raise
        line, kind = " ".join(str(error).split()), type(error).__name__
        screen.fail(f"{kind}: {line} (--debug shows where)", kind, CamlakeError.exit_status)
        raise typer.Exit(CamlakeError.exit_status) from error


def _give_up(screen: Screen) -> None:
    """End the process, whose orderly end takes too long, as it does while a store is out of order."""
    at_last = threading.Timer(1, os._exit, [Stopped.exit_status])  # Writing to a full pipe never ends.
    at_last.daemon = True
    at_last.start()
    try:
        screen.fail(_STOPPED, Stopped.__name__, Stopped.exit_status)
        sys.stderr.flush()
    finally:
        os._exit(Stopped.exit_status)


def main(app: typer.Typer | Callable[..., None]) -> None:
    """Run a program or one verb, and exit; wrong use gives one line on standard error and exit status 2."""
    if not isinstance(app, typer.Typer):
        single = typer.Typer(add_completion=False, **APP_OPTIONS)
        single.command()(app)
        app = single
    logging.captureWarnings(True)
    atexit.register(gc.freeze)  # Python's last look for garbage among torch's and Ray's objects takes over a second.
    try:
        status = app(standalone_mode=False)
    except typer.TyperException as error:
        text = (
            without_secrets(" ".join(error.format_message().split()))
            .replace(". Did you mean", "; did you mean")
            .removesuffix(".")
        )
        if text:  # It is empty after a call without arguments, which has shown the help.
            text, in_json = text if text.endswith("?") else f"{text}; see --help", _asks_for_json(sys.argv)
            Screen("json" if in_json else "text").fail(text, UsageError.__name__, UsageError.exit_status)
        status = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status or 0)


def _asks_for_json(words: list[str]) -> bool:
    """Return whether a command line that can't be parsed has ``--log-format json``."""
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def _parameter(config_class: type[JobConfig], name: str, field: FieldInfo) -> inspect.Parameter:
    """Return a field of the configuration as a typer argument or option; pydantic checks the user's value."""
    if config_class.is_argument(name):
        info: Any = typer.Argument(
            help=_without_markup(str(field.description)), metavar=name.upper(), show_default=False
        )
        return _keyword(name, Annotated[str | None, info])
    extra: Mapping[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    about = (
        f"{field.description} (required)" if field.is_required() else f"{field.description}{_default(field.default)}"
    )
    about, flag = _without_markup(about), "--" + name.replace("_", "-")
    if field.annotation is bool:
        info = typer.Option(f"{flag}/--no-{flag[2:]}", help=about, rich_help_panel=extra["group"], show_default=False)
        return _keyword(name, Annotated[bool | None, info])
    metavar = _metavar(field.annotation)
    info = typer.Option(flag, help=about, rich_help_panel=extra["group"], show_default=False, metavar=metavar)
    return _keyword(name, Annotated[str | None, info])


def _without_markup(text: str) -> str:
    """Return a help text whose brackets are shown; rich would take camlake[index] for the style of what follows."""
    return text.replace("[", "\\[")


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
