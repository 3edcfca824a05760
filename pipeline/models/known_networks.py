"""The table of the networks: what ``camlake models`` lists, without building a network or importing torch.

``python -m pipeline.models.known_networks`` writes the table anew; ``tests/test_known_networks.py`` holds it equal to
the networks themselves.
"""

import csv
import io
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.models.networks.entry import NetworkEntry

_FILE = "known_networks.csv"
COLUMNS = ("network", "map", "input px", "channels", "parameters (M)", "pooling", "head", "weights")

Row = Mapping[str, str | int | float]
"""One network; the keys are COLUMNS."""


@cache
def known_networks() -> tuple[Row, ...]:
    """Return the rows of the installed table."""
    with (resources.files("pipeline.models") / _FILE).open(encoding="utf-8") as file:
        return tuple(_typed(row) for row in csv.DictReader(file))


def row_of(entry: "NetworkEntry") -> Row:
    """Return a network's row by building its outline; the numbers are those of its default architecture."""
    network = entry.outline()
    size = network.preprocessing.image_size
    rows, columns = network.map_size(size)
    values = (
        entry.name,
        f"{rows}×{columns}" if entry.exact_maps else "none",
        size,
        network.channels,
        round(network.n_parameters / 1e6, 1),
        ", ".join(entry.poolings).upper() if entry.exact_maps else "none",
        entry.family.about,
        _weights_of(entry),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _weights_of(entry: "NetworkEntry") -> str:
    """Return the names that ``--weights`` accepts, or the weights from which a training of the network starts."""
    if entry.official_weights:
        return ", ".join(entry.official_weights)
    if entry.source == entry.name:
        return "of the other layers alone; `camlake train` adds a head" if entry.published else "none; give a file"
    return f"trained from {entry.source}'s convolutions" if entry.source else "trained from random values"


def _typed(row: dict[str, str]) -> Row:
    numbers = {"input px": int, "channels": int, "parameters (M)": float}
    return {name: numbers.get(name, str)(value) for name, value in row.items()}


def _write() -> None:
    from pipeline.models import registry  # noqa: PLC0415 - the table is read without torch

    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row_of(entry) for entry in registry.entries())
    with resources.as_file(resources.files("pipeline.models") / _FILE) as path:
        path.write_text(table.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    _write()
