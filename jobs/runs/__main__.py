"""``python -m jobs.runs``."""

from jobs.runs import command
from jobs.terminal.console import main

if __name__ == "__main__":
    main(command)
