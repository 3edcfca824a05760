"""The head that learns boxes: geometry under crops and mirrors, loss, its place in a network, what it learns."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.arrays.metrics import paired_iou
from pipeline.images.augment import VISIBLE, box_shares, draw_views, take_views, view_boxes
from pipeline.images.synthetic.scenes import render_scene
from pipeline.models import registry
from pipeline.models.learn.conversion import build_network, convert
from pipeline.models.learn.learner import Learner, image_losses
from pipeline.models.learn.recipe import Recipe
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.runtime import Runtime
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.box_head import BOX_WEIGHT, GRID, BoxedNetwork, BoxHead, box_losses
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.checkpoint import Card, checkpoint_bytes
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import fit_state, load_network
from schemas.errors import ModelError

SIDE = 64
PLAIN = Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NAN = float("nan")


def shares(*boxes):
    return torch.tensor(boxes, dtype=torch.float32)


def test_boxes_become_shares_of_their_picture():
    found = box_shares([[10, 5, 30, 25], None, [-4, 0, 20, 99], [60, 0, 70, 5]], np.array([[50, 40]] * 4))
    torch.testing.assert_close(
        found, shares([0.25, 0.1, 0.75, 0.5], [NAN] * 4, [0, 0, 0.5, 1], [NAN] * 4), equal_nan=True
    )


@st.composite
def whole_pixel_views(draw):
    """A rectangle in a 32×32 picture and a part of it in whole pixels, mirrored or not."""
    left, top, side = draw(st.integers(0, 16)), draw(st.integers(0, 16)), draw(st.sampled_from((8, 16)))
    x, y = draw(st.integers(0, 28)), draw(st.integers(0, 28))
    box = (x, y, draw(st.integers(x + 1, 32)), draw(st.integers(y + 1, 32)))
    return box, (left, top, side), draw(st.booleans())


@given(whole_pixel_views())
def test_a_box_goes_where_its_pixels_go(drawn):
    (x0, y0, x1, y1), (left, top, side), mirrored = drawn
    picture = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    picture[0, y0:y1, x0:x1] = 255
    scale = side / 32
    middle = [2 * (start + side / 2) / 32 - 1 for start in (left, top)]
    view = torch.tensor([[[-scale if mirrored else scale, 0.0, middle[0]], [0.0, scale, middle[1]]]])
    seen = take_views(picture, view, side)[0, 0] > 127
    found = view_boxes(shares([x0, y0, x1, y1]) / 32, view)[0]
    if seen.sum() < VISIBLE * (x1 - x0) * (y1 - y0):
        assert found.isnan().all()
        return
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert (found * side).tolist() == pytest.approx(expected, abs=1e-4)


@given(st.integers(0, 10_000), st.sampled_from(("crop", "flip", "none")))
def test_a_box_in_a_view_is_the_same_box_in_the_picture(seed, augment):
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.random((2, 6, 2)), axis=0)
    boxes = torch.from_numpy(np.concatenate([low, high], axis=1).astype(np.float32))
    views = draw_views(augment, seed, 0, np.arange(6))
    found = view_boxes(boxes, views)
    # Back by the view itself: the affine map from the input to the picture, corner by corner.
    ends = (2 * found.view(-1, 2, 2) - 1) * views[:, None, [0, 1], [0, 1]] + views[:, None, :, 2]
    back = torch.cat([ends.amin(1), ends.amax(1)], dim=1).add(1).div(2)
    reach, middle = views[:, [0, 1], [0, 1]].abs(), views[:, :, 2]
    part = torch.cat([middle - reach, middle + reach], dim=1).add(1).div(2)
    cut = torch.cat([boxes[:, :2].maximum(part[:, :2]), boxes[:, 2:].minimum(part[:, 2:])], dim=1)
    areas = [(each[:, 2:] - each[:, :2]).clamp(min=0).prod(1) for each in (cut, boxes)]
    known = ~found.isnan().any(1)
    clear = (areas[0] - VISIBLE * areas[1]).abs() > 1e-6
    assert torch.equal(known[clear], (areas[0] >= VISIBLE * areas[1])[clear])
    torch.testing.assert_close(back[known], cut[known], rtol=0, atol=1e-5)


def test_the_head_by_hand():
    head = BoxHead(2)
    assert head(torch.rand(1, 2, 5, 9)).tolist() == [[0.25, 0.25, 0.75, 0.75]]
    with torch.no_grad():
        # Channel 1, last column of cells, upper row: only the centre's x goes by it.
        head.weight.view(4, 2, GRID, GRID)[0, 1, 0, GRID - 1] = GRID**2
    features = torch.zeros(2, 2, GRID, GRID)
    features[0, 1, 0, GRID - 1] = 2.0
    features[1, 1, 0, 0] = 2.0
    expected = torch.tensor([1 / (1 + np.exp(-2)), 0.5])
    found = head(features)
    torch.testing.assert_close((found[:, 0] + found[:, 2]) / 2, expected.float())
    torch.testing.assert_close(found[:, 2] - found[:, 0], torch.full((2,), 0.5))


def test_the_loss_by_hand():
    true = shares([0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [NAN] * 4, [0, 0, 1, 1])
    boxes = shares([0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2], [0, 0, 0.5, 1]).requires_grad_()
    losses = box_losses(boxes, true)
    # IoU 1; apart, a union of half of what surrounds both; unknown; IoU 1/2 with nothing around it.
    assert losses.tolist() == pytest.approx([0, 1.5, 0, 0.5], abs=1e-5)
    losses.sum().backward()
    assert boxes.grad[2].tolist() == [0, 0, 0, 0]
    assert boxes.grad[1].abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *(("resnet18", 1), ("densenet121", 1), ("googlenet", 1), ("mobilenet_v2", 1), ("squeezenet1_1", 1)),
        *(("convnext_tiny", 1), ("swin_t", 1), ("nin", 0.125), ("googlenet_gap", 0.125), ("camlake_demo", 1)),
    ],
)
def test_the_box_stands_on_the_maps_that_cam_sums(name, width):
    torch.manual_seed(0)
    architecture = Architecture(name, width=width, classes=3)
    module = registry.get(architecture.name).with_box_head(architecture, build_network(architecture)).eval()
    nn.init.normal_(module.box_head.weight)
    network = registry.get(architecture.name).cam_network(architecture, module, PLAIN)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        logits, boxes = BoxedNetwork(module, network.trunk)(images)
        features = network.trunk(images)
        torch.testing.assert_close(boxes, network.box_head(features))
        torch.testing.assert_close(logits, network.head(features).logits, rtol=1e-3, atol=1e-4)


def small(name="camlake_demo", classes=4, **options):
    torch.manual_seed(0)
    architecture = Architecture(name, classes=classes, width=1 if name == "camlake_demo" else 0.125)
    network = registry.get(architecture.name).with_box_head(architecture, build_network(architecture))
    boxed = BoxedNetwork(network, registry.get(architecture.name).cam_network(architecture, network, PLAIN).trunk)
    names = [key for key, _ in network.named_parameters()]
    return Learner(network, PLAIN, Recipe.of("modern", 60, rate=3e-3), new=names, boxed=boxed, **options)


def scenes(n):
    made = [render_scene(np.random.default_rng((0, index)), index % 4, (SIDE, SIDE)) for index in range(n)]
    boxes = [max(scene.boxes_xyxy.tolist(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1])) for scene in made]
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in made])).permute(0, 3, 1, 2).float()
    return pixels, torch.eye(4)[[scene.label for scene in made]], box_shares(boxes, np.full((n, 2), SIDE))


def test_sixteen_pictures_are_learned_with_their_boxes():
    images, targets, boxes = scenes(16)
    learner = small()
    for _ in range(60):
        learner.step(images, targets, 16, boxes)
    answer = learner.evaluate(images, targets, boxes)
    iou = paired_iou(answer.boxes.clamp(0, 1).double().numpy(), boxes.double().numpy())
    assert iou.mean() > 0.7
    assert torch.equal(answer.logits.argmax(1), targets.argmax(1))


def test_an_image_without_a_box_trains_the_classifier_alone():
    images, targets, boxes = scenes(4)
    learner, boxes[1:] = small("alexnet_gap"), NAN
    answer = learner.evaluate(images, targets, boxes)
    classes = image_losses(answer.logits, targets, False)
    torch.testing.assert_close(answer.losses[1:], classes[1:])
    torch.testing.assert_close(answer.losses[0] - classes[0], BOX_WEIGHT * box_losses(answer.boxes[:1], boxes[:1])[0])
    before = learner.network.box_head.bias.clone()
    learner.step(images[1:], targets[1:], 3, boxes[1:])
    assert torch.equal(learner.network.box_head.bias, before)
    assert len(learner.step(images[:0], targets[:0], 4, boxes[:0]).boxes) == 0
    learner.step(images[:1], targets[:1], 1, boxes[:1])
    assert not torch.equal(learner.network.box_head.bias, before)


CARD = Card(Architecture("alexnet_gap", width=0.125, classes=4), ("a", "b", "c", "d"), PLAIN, supervision="boxes")


def test_weights_with_a_box_head_go_everywhere(tmp_path):
    state = small("alexnet_gap").state()["network"]
    nn.init.normal_(state["box_head.weight"])
    assert state["box_head.weight"].shape == (4, 128 * GRID**2)
    path = tmp_path / "boxes.safetensors"
    path.write_bytes(checkpoint_bytes(state, CARD))
    weights = load_weights(None, str(path), None)
    network = load_network("alexnet_gap", weights.state, None, preprocessing=weights.preprocessing)
    assert torch.equal(network.box_head.weight, state["box_head.weight"])
    pixels = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    for method in ("cam", "regress"):
        rule = CamRule(2, BoxRule("paper", (0.5,), 0.0))
        localizer = Localizer(network, rule, Runtime("cpu", "fp32", False, 1, 1), method=method)
        assert localizer(pixels, [(50, 40)], [network.map_size(SIDE)]).maps.class_id.shape == (2,)
    torch.save(state, tmp_path / "boxes.pt")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    plain = load_weights("alexnet_gap", str(tmp_path / "boxes.pt"), str(tmp_path / "labels.txt"))
    assert "box_head.bias" in plain.state
    # Another training takes its layers and begins both heads anew.
    assert not any(key.startswith("box_head") for key in convert(CARD.architecture, state).state)
    assert json.loads(CARD.json())["supervision"] == "boxes"


def test_a_box_head_that_does_not_fit_is_refused(tmp_path):
    state = small("alexnet_gap").state()["network"]
    with pytest.raises(ModelError, match=r"'box_head.weight' is \(4, 128\), expected \(4, 6272\)"):
        fit_state(registry.get("alexnet_gap"), state | {"box_head.weight": torch.zeros(4, 128)})
    with pytest.raises(ModelError, match=r"'box_head.bias' is missing"):
        fit_state(registry.get("alexnet_gap"), {key: value for key, value in state.items() if key != "box_head.bias"})
    plain = Architecture("vgg11", width=0.125)
    with pytest.raises(ModelError, match="vgg11 has no exact class activation map"):
        registry.get("vgg11").with_box_head(plain, build_network(plain))
    path = tmp_path / "odd.safetensors"
    path.write_bytes(checkpoint_bytes(state, replace(CARD, supervision="labels")))
    with pytest.raises(ModelError, match=r"holds a box head, but its card says supervision: labels"):
        load_weights(None, str(path), None)
    without = {key: value for key, value in state.items() if not key.startswith("box_head")}
    path.write_bytes(checkpoint_bytes(without, CARD))
    with pytest.raises(ModelError, match=r"holds no box head, but its card says supervision: boxes"):
        load_weights(None, str(path), None)
