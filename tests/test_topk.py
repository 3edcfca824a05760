"""How many classes get maps where a network has few."""

import pytest

from pipeline.annotate.model import fit_topk
from pipeline.models.learn.conversion import build_network
from pipeline.models.networks.architecture import Architecture
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from tests.networks import cut_by_default


def fitted(**options: object) -> int:
    architecture = Architecture("camlake_demo", classes=2)
    network = cut_by_default(architecture, build_network(architecture))
    return fit_topk(AnnotateConfig.resolve({"input": "in", "out": "out", **options}), network).topk


def test_the_default_is_cut_to_the_classes_there_are() -> None:
    assert (fitted(), fitted(topk=2), fitted(topk=1)) == (2, 2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 5}, "--topk 5: allowed: up to the 2 classes of camlake_demo"),
        ({"box_rule": "heuristic"}, "--box-rule heuristic: takes 3 classes; allowed: up to the 2 classes of"),
    ],
)
def test_more_than_there_are_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fitted(**options)
