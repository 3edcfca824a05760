"""What is said where Ray does not start, or a cluster does not let one in."""

import pytest
import ray

from pipeline.graph import cluster
from schemas.errors import CamlakeError, UsageError


@pytest.fixture
def starts(monkeypatch):
    """Replace Ray's start by the outcomes of this list, and note the waits between them."""
    outcomes, waits = [], []

    def init(**options):
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.time, "sleep", waits.append)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return outcomes, waits


LATE = Exception("The current node timed out during startup. This could happen because\nof something")


def test_a_start_that_fails_is_tried_again(starts):
    outcomes, waits = starts
    outcomes += [LATE, None]
    cluster._connect(None, 2)
    assert (outcomes, waits) == ([], [cluster.SECOND_START_AFTER_S])


def test_two_failures_are_one_line(starts):
    starts[0].extend([LATE, LATE])
    with pytest.raises(CamlakeError) as hit:
        cluster._connect(None, 2)
    said = str(hit.value)
    assert said.startswith("Ray did not start twice; is this machine overloaded (its load is ")
    assert said.endswith(" on 2 cores)? The current node timed out during startup. This could happen because")


def refused_in_words() -> ConnectionError:
    """What Ray 2.60 raises where a cluster wants a token and none is found."""
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    error.__cause__ = RuntimeError("Failed to connect to GCS. Last connection error: RPC error: InvalidAuthToken: …")
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ray.exceptions.AuthenticationError("no"), "this cluster wants a token; set RAY_AUTH_MODE=token, and"),
        (refused_in_words(), "this cluster wants a token; set RAY_AUTH_MODE=token, and"),
        (ConnectionError("no"), "no Ray cluster answers there; start one with `ray start --head`"),
        (ValueError("no"), "no Ray cluster answers there; start one with `ray start --head`"),
    ],
)
def test_a_cluster_that_does_not_let_one_in(starts, error, line):
    starts[0].append(error)
    with pytest.raises(UsageError, match=f"^--address '10.0.0.1:6379': {line}"):
        cluster._connect("10.0.0.1:6379", 2)
