"""camlake's job: ``camlake annotate`` on CPU, with boxes by the paper's rule, as the other sides cut them."""

from tests.benchmarks.peers.setup import Setup
from tests.benchmarks.peers.side import run_python


def run(setup: Setup) -> None:
    """Write all tables, with the same number type as the other sides; raises CamlakeError where the command fails."""
    options = ["--model", setup.model, "--weights", setup.weights, "--precision", setup.precision]
    options += ["--device", "cpu", "--box-rule", "paper"]
    run_python("-m", "camlake", "annotate", setup.photographs, "--out", setup.out, *options)
