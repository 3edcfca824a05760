"""Box rules by hand: which boxes of which classes leave, how the options are checked, what older manifests said."""

import numpy as np
import pytest

from pipeline.models.localize.box_rules import BoxRule, CutMaps, boxes_in_pixels
from pipeline.models.localize.localizer import CamRule
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.box_rules import HEURISTIC_THRESHOLDS
from schemas.runs import RunManifest
from tests.fake_lake import manifest_of
from tests.test_localizer import by_hand, localize, picture

NETWORK = by_hand([[4, 0, 0], [0, 3, 0], [0, 0, 2], [0.5, 0, 0]])
CORNERS = picture((0, 0, 2, 0, 2), (1, 0, 2, 6, 8), (2, 6, 8, 0, 2))
"""Red fills the first cell of 4×4, green the last of the first row, blue the first of the last row."""


RULE = BoxRule("heuristic", (0.25, 0.75), 0.0)
FIVE = [
    (0, 0.25, [0, 0, 12.5, 12.5]),
    (0, 0.75, [0, 0, 7.5, 7.5]),
    (1, 0.25, [27.5, 0, 40, 12.5]),
    (1, 0.75, [32.5, 0, 40, 7.5]),
    (2, 0.25, [0, 27.5, 12.5, 40]),
]


def found(rule, topk=4, classes=None):
    """Rank, threshold and box of a picture of 40×40 pixels: a cell is 10×10, and t reaches 10·(1 - t) beyond 5."""
    answer = localize(NETWORK, CORNERS, CamRule(topk, rule), sizes=[(40, 40)], classes=classes)
    ranks = answer.maps.rank[answer.boxes.map].tolist()
    return list(zip(ranks, answer.boxes.threshold.tolist(), answer.boxes.xyxy.tolist(), strict=True))


class TestHeuristic:
    def test_five_boxes_of_the_first_three_classes(self):
        assert found(RULE) == FIVE

    def test_thresholds_may_stand_in_any_order(self):
        other = found(BoxRule("heuristic", (0.75, 0.25), 0.0))
        assert sorted(other) == FIVE
        assert other[0][1] == 0.75

    def test_named_classes_have_maps_alone(self):
        assert found(RULE, topk=3, classes=[[3]]) == FIVE

    def test_too_small_ones_are_left_out_after_the_choice(self):
        least = (12.5 / 40) ** 2
        assert found(BoxRule("heuristic", (0.25, 0.75), least)) == [row for row in FIVE if row[1] == 0.25]

    @pytest.mark.parametrize(("loose", "kept"), [([0, 0, 1, 1], 0.5), ([0, 0, 3, 1], 0.2), ([0, 0, 2, 1], 0.2)])
    def test_loose_is_the_larger_box_else_the_lower_threshold(self, loose, kept):
        # At a higher threshold another component may be the largest, with a longer box.
        cells = np.array([loose, [0, 0, 1, 2]], np.float32)
        columns = np.array([0, 0]), np.array([0, 1]), np.array([0, 0]), cells
        part = CutMaps(np.array([7]), np.array([2]), np.array([[40, 40]]), (4, 4), columns)
        boxes = boxes_in_pixels(BoxRule("heuristic", (0.2, 0.5), 0.0), [part])
        assert boxes.threshold.tolist() == pytest.approx([kept])
        assert boxes.map.tolist() == [7]


def test_paper_and_all_components_take_every_class():
    assert [rank for rank, _, _ in found(BoxRule("paper", (0.25,), 0.0))] == [0, 1, 2, 3]
    two = localize(
        by_hand([[1, 0, 0], [0, 1, 0]]),
        picture((0, 0, 2, 0, 4), (0, 6, 8, 6, 8)),
        CamRule(1, BoxRule("all-components", (0.5,), 0.0)),
    )
    assert two.boxes.component.tolist() == [0, 1]


class TestOptions:
    @staticmethod
    def resolve(**options):
        return AnnotateConfig.resolve({"input": "in", "out": "out", "box_rule": "heuristic", **options})

    def test_the_heuristic_brings_two_thresholds(self):
        assert self.resolve().threshold == HEURISTIC_THRESHOLDS == (0.2, 0.5)
        assert self.resolve(threshold="0.3,0.1").threshold == (0.3, 0.1)
        assert self.resolve(box_rule="paper").threshold == (0.2,)

    @pytest.mark.parametrize("threshold", [0.2, "0.2,0.4,0.6"])
    def test_it_takes_no_other_number_of_them(self, threshold):
        with pytest.raises(UsageError, match=r"^--threshold [\d.,]+: allowed with --box-rule heuristic: two values"):
            self.resolve(threshold=threshold)

    def test_it_needs_three_classes(self):
        with pytest.raises(UsageError, match=r"^--topk 2: allowed with --box-rule heuristic: 3 or more$"):
            self.resolve(topk=2)
        assert self.resolve(topk=2, box_rule="all-components").topk == 2


@pytest.mark.parametrize(("components", "rule"), [("largest", "paper"), ("all", "all-components")])
def test_older_manifests_are_read_by_todays_names(components, rule):
    document = manifest_of("20261123T050000-abcdef").model_dump(mode="json")
    document["settings"] = {"threshold": [0.2], "components": components}
    assert RunManifest.model_validate(document).settings == {"threshold": [0.2], "box_rule": rule}
