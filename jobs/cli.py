"""The program ``camlake``: every verb in one place; only the module of the verb that was asked for is imported."""

import ast
import importlib
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

import jobs

FIRST = ("demo", "annotate", "train", "evaluate")
"""The verbs that stand first in the help; the others follow in alphabetical order."""


def verbs() -> dict[str, str]:
    """Return each verb with the one sentence of the program's help.

    A verb is a file of ``jobs`` that has this sentence in ``ABOUT`` and its command-line function in ``command``. The
    files are read, not imported, so that the help needs none of what the verbs import.
    """
    found = {}
    for file in sorted(file for folder in jobs.__path__ for file in Path(folder).glob("*.py")):
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ABOUT":
                found[file.stem] = str(ast.literal_eval(statement.value))
    return {name: found.pop(name) for name in FIRST} | found


def make_app(asked: str | None) -> typer.Typer:
    """Return the program: the verb ``asked`` is imported with its options, the others are only lines of the help."""
    from jobs import console

    app = typer.Typer(
        name="camlake",
        help="Weak localization labels from unlabelled images: class activation maps on Ray Data, as Parquet.",
        no_args_is_help=True,
        **console.APP_OPTIONS,
    )
    app.callback()(_program)
    for verb, about in verbs().items():
        if verb == asked:
            app.command(verb)(importlib.import_module(f"jobs.{verb}").command)
        else:
            app.command(verb, help=about)(lambda: None)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"camlake {metadata.version('camlake')}")
        raise typer.Exit


def _program(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


def _asked_verb() -> str | None:
    """Return the verb of the command line, or of the line that a shell wants to have completed."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    words = sys.argv[1:] or line.split()[1:]
    return next((word for word in words if not word.startswith("-")), None)


def main() -> None:
    """Run ``camlake`` and exit; Ctrl-C is one line on standard error whenever it comes."""
    try:
        from jobs import console

        console.main(make_app(_asked_verb()))
    except KeyboardInterrupt:
        sys.exit("camlake: stopped; run the same command again to go on")


if __name__ == "__main__":
    main()
