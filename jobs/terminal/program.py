"""The program ``camlake``, which has every verb; only the module of the verb on the command line is imported."""

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
"""The verbs that the help lists first; the others follow in alphabetical order."""


def verbs() -> dict[str, str]:
    """Return each verb with its sentence for the program's help.

    A verb is a file of ``jobs``, or a folder with the file ``__init__.py``, that has this sentence in ``ABOUT`` and its
    command-line function in ``command``. The files are parsed, not imported, so that the help does not import the
    verbs' libraries.
    """
    places = [Path(folder) for folder in jobs.__path__]
    files = {file.stem: file for place in places for file in place.glob("*.py")}
    files |= {file.parent.name: file for place in places for file in place.glob("*/__init__.py")}
    found = {}
    for name in sorted(files):
        for statement in ast.parse(files[name].read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ABOUT":
                found[name] = str(ast.literal_eval(statement.value))
    return {name: found.pop(name) for name in FIRST} | found


def make_app(asked: str | None) -> typer.Typer:
    """Return the program; it imports only the verb ``asked`` with its options and lists the other verbs in the help."""
    from jobs.terminal import console

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
    """Return the verb of the command line, or of the line that the shell asks to complete; None without a verb."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    words = sys.argv[1:] or line.split()[1:]
    return next((word for word in words if not word.startswith("-")), None)


def main() -> None:
    """Run ``camlake`` and exit; Ctrl-C at any time gives one line on standard error."""
    try:
        from jobs.terminal import console

        console.main(make_app(_asked_verb()))
    except KeyboardInterrupt:
        sys.exit("camlake: stopped; run the same command again to go on")


if __name__ == "__main__":
    main()
