"""The installed table of the networks is what the networks say of themselves."""

import pytest

from pipeline.models import registry
from pipeline.models.known_networks import known_networks, row_of

TABLE = {row["network"]: row for row in known_networks()}


def test_it_lists_every_network_in_the_registrys_order() -> None:
    assert list(TABLE) == [entry.name for entry in registry.entries()]


QUICK = {"camlake_demo", "resnet18", "squeezenet1_1", "mobilenet_v2", "alexnet"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)
def test_a_row_is_what_the_network_says(name: str) -> None:
    assert row_of(registry.get(name)) == TABLE[name], "python -m pipeline.models.known_networks writes the table anew"
