"""``python -m jobs.demo``."""

from jobs.demo import command
from jobs.terminal.console import main

if __name__ == "__main__":
    main(command)
