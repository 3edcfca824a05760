"""Random kills while the store fails: nothing lost, nothing twice. ``tests.benchmarks.soak`` does more, also on Ray."""

import pytest

from jobs.terminal.console import Screen
from tests.benchmarks.soak import SoakConfig, measure


@pytest.mark.slow
def test_kills_cost_nothing():
    figures = measure(SoakConfig.resolve({"count": 64, "kills": 6, "ray_kills": 0, "seed": 3}), Screen())
    assert figures["kills"] == 6
    assert figures["equal rows"]["images"] >= 2 * 63
