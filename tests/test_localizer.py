"""One forward pass: classes, maps, boxes and features of a hand-worked network, and the independence of the batch."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from pipeline.arrays.calibration import Calibration
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.networks.heads import ConvHead
from pipeline.models.networks.network import CamNetwork
from pipeline.models.weights.state_fitting import load_network
from tests.hand_made import RULE, RUNTIME, answers, by_hand, decoded_table, stage_by_hand


def picture(*rectangles):
    """An 8×8 picture, black but for (colour, y0, y1, x0, x1)."""
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    for color, y0, y1, x0, x1 in rectangles:
        pixels[0, y0:y1, x0:x1, color] = 255
    return pixels


def localize(network, pixels, rule=RULE, sizes=None, valid_hw=None, classes=None):
    n, inputs = len(pixels), torch.from_numpy(pixels)
    return Localizer(network, rule, RUNTIME)(inputs, sizes or [(80, 40)] * n, valid_hw or [(4, 4)] * n, classes)


class TestByHand:
    def test_an_infinite_map_makes_the_image_non_finite(self):
        # Where red and green meet the map is 3e38 + 3e38, beyond float32; their means are not.
        network = by_hand([[3e38, 3e38, 0], [0, 1, 0], [0, 0, 1]])
        found = localize(network, np.concatenate([picture((0, 0, 2, 0, 2), (1, 0, 2, 0, 2)), picture((2, 0, 4, 0, 4))]))
        assert found.finite.tolist() == [False, True]
        assert found.maps.image.tolist() == [1, 1]
        assert np.isfinite(found.maps.heat).all()

    def test_classes_features_maps_and_boxes(self):
        # Red fills the top left quarter (2×2 of 4×4 cells), blue one cell at the bottom right.
        found = localize(by_hand([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), picture((0, 0, 4, 0, 4), (2, 6, 8, 6, 8)))
        assert found.pooled.tolist() == [[0.25, 0.0, 0.0625]]
        expected = torch.tensor([0.25, 0.0, 0.0625]).softmax(0)
        assert found.maps.class_id.tolist() == [0, 2]
        assert found.maps.rank.tolist() == [0, 1]
        assert found.maps.class_prob.tolist() == pytest.approx([expected[0].item(), expected[2].item()])
        assert found.top1_class_id.tolist() == [0]
        red = np.zeros((4, 4))
        red[:2, :2] = 1
        assert np.array_equal(found.maps.heat[0], red)
        # At half of the maximum: red reaches cell 2's left edge, blue from cell 3 on; cells are 10×20 pixels of 40×80.
        assert found.boxes.xyxy.tolist() == [[0, 0, 20, 40], [30, 60, 40, 80]]
        assert found.boxes.area_frac.tolist() == [0.25, 0.0625]

    def test_map_mean_plus_bias_is_the_logit(self):
        network = by_hand([[1, -2, 0.5], [0.25, 1, 1]], bias=[0.5, -1.0])
        pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
        found = localize(network, pixels)
        logits = network(torch.from_numpy(pixels)).logits
        means = [heat.mean() for heat in found.maps.heat]
        for row, (image, class_id) in enumerate(zip(found.maps.image, found.maps.class_id, strict=True)):
            bias = network.head.linear.bias[class_id]
            assert means[row] + bias.item() == pytest.approx(logits[image, class_id].item(), abs=1e-5)

    def test_with_several_labels_an_image_each_class_has_its_own_probability(self):
        network = by_hand([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
        localizer = Localizer(network, RULE, RUNTIME, multi_label=True)
        found = localizer(torch.from_numpy(picture((0, 0, 8, 0, 8))), [(80, 40)], [(4, 4)])
        assert found.maps.class_prob.tolist() == pytest.approx([1 / (1 + np.exp(-1)), 0.5])

    def test_equal_classes_stand_in_the_order_of_their_ids(self):
        found = localize(by_hand([[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0]]), picture((0, 0, 8, 0, 8)))
        assert found.maps.class_id.tolist() == [1, 2]

    def test_map_without_positive_value_has_no_box(self):
        found = localize(by_hand([[-1, 0, 0], [-2, 0, 0]]), picture((0, 0, 8, 0, 8)))
        assert len(found.maps.image) == 2
        assert len(found.boxes.map) == 0

    def test_named_classes_come_with_their_true_rank(self):
        network = by_hand([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]])
        pixels = np.concatenate([picture((0, 0, 4, 0, 4))] * 2)
        found = localize(network, pixels, classes=[[3, 0], []])
        assert found.maps.image.tolist() == [0, 0, 0, 1, 1]
        assert found.maps.class_id.tolist() == [0, 1, 3, 0, 1]
        assert found.maps.rank.tolist() == [0, 1, 3, 0, 1]

    def test_several_thresholds_give_a_box_each(self):
        rule = CamRule(topk=1, boxes=BoxRule("paper", (0.25, 0.75), 0.0))
        found = localize(by_hand([[1, 0, 0], [0, 1, 0]]), picture((0, 0, 2, 0, 2)), rule, sizes=[(40, 40)])
        assert found.boxes.threshold.tolist() == [0.25, 0.75]
        assert found.boxes.xyxy.tolist() == [[0, 0, 12.5, 12.5], [0, 0, 7.5, 7.5]]

    def test_all_components_and_their_least_area(self):
        pixels = picture((0, 0, 4, 0, 4), (0, 6, 8, 6, 8))
        network = by_hand([[1, 0, 0], [0, 1, 0]])
        every = CamRule(1, BoxRule("all-components", (0.5,), 0.0))
        assert localize(network, pixels, every).boxes.component.tolist() == [0, 1]
        large = CamRule(1, BoxRule("all-components", (0.5,), 0.1))
        assert localize(network, pixels, large).boxes.component.tolist() == [0]

    def test_only_the_covered_cells_count(self):
        # A picture of 80×40 that `fit` puts into the left two columns; what lies in the padding is no map.
        pixels = picture((0, 0, 4, 0, 2), (0, 0, 8, 4, 8))
        found = localize(by_hand([[1, 0, 0], [0, 1, 0]]), pixels, valid_hw=[(4, 2)])
        assert found.maps.valid_hw.tolist() == [[4, 2], [4, 2]]
        assert found.boxes.xyxy[0].tolist() == [0, 0, 20, 40]

    def test_not_finite_images_have_no_maps(self):
        network = by_hand([[1, 0, 0], [0, 1, 0]])
        network.head.linear.weight[0, 2] = float("nan")
        found = localize(network, picture((0, 0, 4, 0, 4)))
        assert found.finite.tolist() == [False]
        assert len(found.maps.image) == 0


def test_a_convolution_over_all_classes_has_the_trunks_number_type():
    network = by_hand([[0, 0, 0]] * 2)
    conv = nn.Conv2d(3, 2, 1)
    conv.weight.data = torch.tensor([[1 + 2**-12, 0, 0], [1, 0, 0]])[..., None, None]  # the same in bf16
    conv.bias.data.zero_()
    network = CamNetwork("conv", network.trunk, ConvHead(conv), network.preprocessing)
    rule = CamRule(2, BoxRule("paper", (0.5,), 0.0))
    red = torch.from_numpy(picture((0, 0, 8, 0, 8)))
    exact, short = (
        Localizer(network, rule, replace(RUNTIME, precision=precision))(red, [(8, 8)], [(4, 4)])
        for precision in ("fp32", "bf16")
    )
    assert exact.top1_prob[0] > 0.5 == short.top1_prob[0]
    assert short.maps.heat[0].max() > short.maps.heat[1].max(), "maps of chosen classes are float32"


@pytest.mark.parametrize("resize_rows", [(4, 4), (2, 4)])
def test_an_image_does_not_depend_on_its_batch(resize_rows):
    torch.manual_seed(0)
    network = load_network("squeezenet1_1", None, 64)
    side = network.map_size(64)[0]
    valid_hw = (min(resize_rows[0], side), min(resize_rows[1], side))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8))
    localizer = Localizer(network, CamRule(5, BoxRule("all-components", (0.2, 0.6), 0.0)), RUNTIME)
    together = localizer(pixels, [(100, 50)] * 8, [valid_hw] * 8)
    for index in range(8):
        alone = localizer(pixels[index : index + 1], [(100, 50)], [valid_hw])
        own = together.maps.image == index
        assert together.maps.class_id[own].tolist() == alone.maps.class_id.tolist()
        assert np.allclose(together.maps.heat[own], alone.maps.heat, atol=1e-4)
        boxes = together.boxes.xyxy[own[together.boxes.map]]
        assert boxes.shape == alone.boxes.xyxy.shape
        assert np.allclose(boxes, alone.boxes.xyxy, atol=0.05)


class TestStage:
    """Tables of decoded images, of any layout in memory, to rows."""

    PIXELS = np.concatenate([picture((color, 0, 4, 0, 2), (2, 0, 8, 4, 8)) for color in (0, 1, 0)])

    def blobs(self):
        return [one.tobytes() for one in self.PIXELS]

    def test_maps_are_stored_as_far_as_their_picture_goes(self):
        rows = answers(stage_by_hand()(decoded_table(self.blobs())))
        assert [row["top1_label"] for row in rows] == ["red", "green", "red"]
        shapes = [(heat["heat_h"], heat["heat_w"]) for row in rows for heat in row["heatmaps"]]
        assert shapes == [(4, 2)] * 2 + [(4, 4)] * 2 + [(4, 1)] * 2
        assert [row["heatmaps"][0]["heat"] for row in rows] == [
            [255, 0, 255, 0, 0, 0, 0, 0],
            [255, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [255, 255, 0, 0],
        ]
        assert [row["n_boxes"] for row in rows] == [1, 1, 1]

    def test_slices_and_chunks_of_a_table_give_the_rows_of_the_whole(self):
        stage, decoded = stage_by_hand(), decoded_table(self.blobs())
        rows = answers(stage(decoded))
        assert answers(stage(decoded.slice(1))) == rows[1:]
        assert answers(stage(pa.concat_tables([decoded.slice(2), decoded.slice(0, 2)]))) == [rows[2], *rows[:2]]

    @pytest.mark.parametrize("left", [b"", bytes(192)])
    def test_rejected_rows_keep_their_place_whatever_pixels_they_have(self, left):
        first, _, last = self.blobs()
        rows = answers(stage_by_hand()(decoded_table([first, left, last], [None, "corrupt", None])))
        whole = answers(stage_by_hand()(decoded_table(self.blobs())))
        assert [rows[0], rows[2]] == [whole[0], whole[2]]
        assert rows[1]["reason_code"] == "corrupt"
        assert rows[1]["boxes"] is rows[1]["top1_label"] is rows[1]["width_px"] is None

    def test_pixels_of_the_device_stand_in_for_the_columns(self):
        stage, reasons = stage_by_hand(), [None, "corrupt", None]
        expected = answers(stage(decoded_table(self.blobs(), reasons)))
        given = torch.from_numpy(self.PIXELS[[0, 2]])
        assert answers(stage.annotate(decoded_table([b""] * 3, reasons), given)) == expected

    def test_features_carry_the_digits_of_the_networks_number_type(self):
        noise = [np.random.default_rng(seed).bytes(192) for seed in range(3)]
        stages = [stage_by_hand(runtime=replace(RUNTIME, precision=precision)) for precision in ("fp32", "bf16")]
        exact, rounded = (np.stack(stage(decoded_table(noise))["feature"].to_pylist()) for stage in stages)
        assert np.any(exact.astype(np.float32).view(np.uint32) & 0x1FFF)
        assert not np.any(rounded.astype(np.float32).view(np.uint32) & 0x1FFF)
        assert np.allclose(rounded, exact, rtol=0.02)

    def test_a_calibration_makes_the_box_score(self):
        # The score is the sigmoid of -1, whatever the box: all weights but the bias are 0.
        calibration = Calibration(means=(0.0,) * 6, scales=(1.0,) * 6, weights=(0.0,) * 6, bias=-1.0)
        rows = stage_by_hand(calibration)(decoded_table(self.blobs()))
        scores = [box["box_score"] for row in rows["boxes"].to_pylist() for box in row]
        assert scores
        assert scores == pytest.approx([1 / (1 + np.e)] * len(scores))
