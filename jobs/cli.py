"""The program ``camlake``: every verb in one place; only the module of the verb that was asked for is imported."""

import ast
import importlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

FIRST = ("demo", "annotate", "train", "evaluate")
"""The verbs that stand first in the help; the others follow by the alphabet."""


def verbs() -> dict[str, str]:
    """Return each verb with its one sentence: a verb is a file of this folder that says what it does in ``ABOUT``.

    The files are read, not imported, so that the help of the program needs none of what the verbs need.
    """
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        for line in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(line, ast.Assign) and [ast.unparse(target) for target in line.targets] == ["ABOUT"]:
                found[file.stem] = str(ast.literal_eval(line.value))
    return {name: found.pop(name) for name in FIRST} | found


def make_app(asked: str | None) -> typer.Typer:
    """Return the program, with the verb ``asked`` in full and the others as lines of its help."""
    app = typer.Typer(
        name="camlake",
        help="Weak localization labels from unlabelled images: class activation maps on Ray Data, as Parquet.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
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


def main() -> None:
    """Run ``camlake``; Ctrl-C is one line whenever it comes."""
    try:
        from jobs import console  # noqa: PLC0415 - so that Ctrl-C during the imports is one line too

        console.main(make_app(next((word for word in sys.argv[1:] if not word.startswith("-")), None)))
    except KeyboardInterrupt:
        sys.exit("camlake: stopped; run the same command again to go on")


if __name__ == "__main__":
    main()
