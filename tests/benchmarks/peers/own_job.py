"""camlake's job: ``camlake annotate`` on CPU, with boxes by the paper's rule, as the other sides cut them."""

from jobs.benchmark.steady_rate import SilentReporter
from pipeline.graph.annotate.driver import annotate
from schemas.options.annotate import AnnotateConfig
from tests.benchmarks.peers.setup import Setup


def run(setup: Setup) -> None:
    """Write all tables, with the same number type as the other sides."""
    job = {"model": setup.model, "weights": setup.weights, "precision": setup.precision, "device": "cpu"}
    job |= {"box_rule": "paper"}
    annotate(AnnotateConfig(input=str(setup.photographs), out=str(setup.out), **job), SilentReporter())
