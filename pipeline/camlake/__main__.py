"""``python -m camlake VERB …`` and the console script ``camlake``: both come in by this door."""

from .own_packages import use_own


def main() -> None:
    """Run the program; the verbs are those of the package ``jobs``."""
    use_own("jobs")
    from jobs.terminal.program import main as run_program  # noqa: PLC0415 - only now is it certain whose ``jobs`` is meant

    run_program()


if __name__ == "__main__":
    main()
