"""The program ``camlake``: every verb in one place; only the module of the verb that was asked for is imported."""

import importlib
import sys
from importlib import metadata
from typing import Annotated

import typer

VERBS = {
    "demo": "Render pictures with known boxes, annotate them, score the boxes and write a page.",
    "annotate": "Annotate images with classes, class activation maps, boxes and features.",
    "train": "Fine-tune a network on labelled images, for annotate --weights.",
    "evaluate": "Score the boxes and maps of an output against known boxes.",
    "rebox": "Cut new boxes from an output's stored maps, without network, GPU and images.",
    "report": "Write one self-contained HTML page with pictures, heatmaps, boxes, scores and rejects.",
    "verify": "Prove that every listed input is accounted for and that every committed file is whole.",
    "models": "List the networks: whether they have exact class activation maps, and where their weights come from.",
    "benchmark": "Measure this machine: speed, published scores, memory, crash recovery, boxes.",
}


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
    for verb, about in VERBS.items():
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
