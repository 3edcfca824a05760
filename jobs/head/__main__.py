"""``python -m jobs.head``."""

from jobs.head import command
from jobs.terminal.console import main

if __name__ == "__main__":
    main(command)
