"""``python -m tests.benchmarks.peers``."""

from jobs.terminal.console import main
from tests.benchmarks.peers.comparison import command

if __name__ == "__main__":
    main(command)
