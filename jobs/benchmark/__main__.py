"""``python -m jobs.benchmark``."""

from jobs.benchmark import command
from jobs.terminal.console import main

if __name__ == "__main__":
    main(command)
