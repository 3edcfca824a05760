"""Ten random kills while the store fails: nothing lost, nothing twice. ``tests.benchmarks.soak`` does more of them."""

import pytest

from jobs.terminal.console import Screen
from tests.benchmarks.soak import SoakConfig, measure


@pytest.mark.slow
def test_ten_kills_cost_nothing():
    figures = measure(SoakConfig.resolve({"count": 64, "kills": 9, "ray_kills": 1, "seed": 3}), Screen())
    assert figures["kills"] == 10
    assert figures["equal rows"]["images"] >= 2 * 63
