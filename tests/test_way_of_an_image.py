"""The way from the verb to the line that multiplies weights and maps: three hops between drawers, and none back.

A drawer is a folder of ``pipeline/``, or ``jobs/``. The hops are those of all chains of imports.
"""

from collections.abc import Mapping, Set
from pathlib import Path, PurePosixPath

from tests.test_layers import ROOT, import_graph

VERB, PRODUCT = PurePosixPath("jobs/annotate.py"), PurePosixPath("pipeline/models/networks/heads.py")
Graph = Mapping[PurePosixPath, Set[PurePosixPath]]


def reached(start: PurePosixPath, graph: Graph) -> set[PurePosixPath]:
    """Return the files at which chains of imports from ``start`` arrive, with ``start``."""
    found, left = {start}, [start]
    while left:
        new = graph[left.pop()] - found
        found |= new
        left += new
    return found


def drawer(path: PurePosixPath) -> str:
    """Return the drawer in which a file lies."""
    return path.parts[1] if path.parts[0] == "pipeline" else path.parts[0]


def hops(root: Path) -> set[tuple[str, str]]:
    """Return the hops between drawers of all chains of imports from the verb to the product."""
    graph = import_graph(root)
    importers = {path: {other for other, imports in graph.items() if path in imports} for path in graph}
    on_the_way = reached(VERB, graph) & reached(PRODUCT, importers)
    pairs = [(drawer(path), drawer(other)) for path in on_the_way for other in graph[path] & on_the_way]
    return {(here, there) for here, there in pairs if here != there}


def test_from_the_verb_to_the_product_there_are_three_hops() -> None:
    assert hops(ROOT) == {("jobs", "graph"), ("graph", "annotate"), ("annotate", "models")}


def test_a_planted_way_round_is_found(tmp_path: Path) -> None:
    files = {
        "jobs/annotate.py": "from pipeline.graph import driver",
        "pipeline/graph/driver.py": "from pipeline.annotate import stage",
        "pipeline/annotate/stage.py": "def late():\n    from pipeline.outputs import round",
        "pipeline/outputs/round.py": "from pipeline.models.networks import heads",
        "pipeline/models/networks/heads.py": "",
        "pipeline/models/registry.py": "from pipeline.models.networks import heads",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hops(tmp_path) == {("jobs", "graph"), ("graph", "annotate"), ("annotate", "outputs"), ("outputs", "models")}
