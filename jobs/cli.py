"""The program ``camlake``: every verb in one place."""

import typer

from jobs import annotate, benchmark, console, demo, evaluate, models, report, verify

app = typer.Typer(
    name="camlake",
    help="Weak localization labels from unlabelled images: class activation maps on Ray Data, as Parquet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for job in (demo, annotate, evaluate, report, verify, models, benchmark):
    app.command()(job.command)


def main() -> None:
    """Run ``camlake``."""
    console.main(app)


if __name__ == "__main__":
    main()
