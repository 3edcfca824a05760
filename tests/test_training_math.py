"""The arithmetic of learning: rates, losses, frozen layers, views, the step's gradient, what counts as best."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.graph.train.checkpoints import Progress
from pipeline.graph.train.train_worker import epoch_order
from pipeline.images.augment import draw_views, picture_side, take_views
from pipeline.models.learn.conversion import build_network
from pipeline.models.learn.learner import Learner, freeze, image_losses, mean_average_precision
from pipeline.models.learn.recipe import Recipe, make_optimizer
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.network import Preprocessing

PLAIN = Preprocessing(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_the_papers_rate_falls_by_quarters():
    recipe = Recipe.of("paper", 8)
    expected = [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert [recipe.rate_factor(step) for step in range(8)] == pytest.approx(expected)
    # The paper's own 160,000 iterations, a tenth after every 40,000.
    papers = Recipe.of("paper", 160_000)
    ends = [step for step in range(1, 160_000) if papers.rate_factor(step) != papers.rate_factor(step - 1)]
    assert ends == [40_000, 80_000, 120_000]
    assert (recipe.rate, recipe.pretrained_share, recipe.weight_decay, recipe.label_smoothing) == (1e-3, 1, 5e-4, 0)


def test_the_modern_rate_rises_and_falls_along_a_cosine():
    recipe = Recipe.of("modern", 40)
    factors = [recipe.rate_factor(step) for step in range(40)]
    assert factors[:2] == [0.5, 1.0]
    assert factors[2] == pytest.approx(0.5 * (1 + math.cos(math.pi / 39)))
    assert factors[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 38 / 39)))
    assert all(later < earlier for earlier, later in pairwise(factors[1:]))
    assert 0 < Recipe.of("modern", 1).rate_factor(0) <= 1


def test_losses_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    target = torch.tensor([[1.0, 0.0]])
    assert image_losses(logits, target, False).tolist() == pytest.approx([-math.log(0.75)])
    smoothed = -0.95 * math.log(0.75) - 0.05 * math.log(0.25)
    assert image_losses(logits, target, False, 0.1).tolist() == pytest.approx([smoothed])
    assert image_losses(logits, target, True).tolist() == pytest.approx([(-math.log(0.75) + math.log(2)) / 2])


@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 10_000))
def test_mean_average_precision_by_the_definition(n_images, n_classes, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (n_images, n_classes)).astype(np.float32)
    targets = rng.integers(0, 2, (n_images, n_classes)).astype(np.float32)
    present = targets.any(axis=0)
    if not present.any():
        assert math.isnan(mean_average_precision(scores, targets))
        return
    expected = np.mean([plain_average_precision(scores[:, c], targets[:, c] > 0) for c in np.flatnonzero(present)])
    assert mean_average_precision(scores, targets) == pytest.approx(expected)


def test_scores_that_are_no_numbers_have_no_average_precision():
    assert math.isnan(mean_average_precision(np.float32([[0.5], [np.nan]]), np.float32([[1], [0]])))
    assert math.isnan(mean_average_precision(np.float32([[0.5], [np.inf]]), np.float32([[1], [0]])))


def plain_average_precision(scores, right):
    total = recall = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found = scores >= threshold
        gained = right[found].sum() / right.sum() - recall
        total, recall = total + gained * right[found].mean(), recall + gained
    return total


def test_rates_and_decay_of_the_groups():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = make_optimizer(network, Recipe.of("modern", 10), {"2.weight", "2.bias"})
    found = {
        (group["highest_rate"], group["weight_decay"]): [tuple(each.shape) for each in group["params"]]
        for group in optimizer.param_groups
    }
    assert found == {
        (1e-4, 0.05): [(3, 2)],
        (1e-4, 0.0): [(3,), (3,), (3,)],
        (1e-3, 0.05): [(2, 3)],
        (1e-3, 0.0): [(2,)],
    }
    paper = make_optimizer(network, Recipe.of("paper", 10), {"2.weight"})
    assert {(group["highest_rate"], group["weight_decay"], group["momentum"]) for group in paper.param_groups} == {
        (1e-3, 5e-4, 0.9)
    }


def learner_of(name, new=None, **options):
    torch.manual_seed(0)
    network = build_network(Architecture(name, classes=2, width=1 if name == "camlake_demo" else 0.125))
    new = [key for key, _ in network.named_parameters()] if new is None else new
    return Learner(network, PLAIN, Recipe.of("paper", 30, rate=0.01), new=new, **options)


def a_batch(n=4):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 64, 64, generator=generator) * 255, torch.eye(2)[[0, 1] * (n // 2)]


def test_a_frozen_trunk_stays_as_it_is_with_its_statistics():
    torch.manual_seed(0)
    network = build_network(Architecture("camlake_demo", classes=2))
    head = ["classifier.weight", "classifier.bias"]
    freeze(network, head)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    learner = Learner(network, PLAIN, Recipe.of("paper", 30, rate=0.1), new=head)
    learner.step(*a_batch(), slots=4)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == set(head)


def test_two_halves_of_a_batch_have_its_gradient():
    images, targets = a_batch(8)
    one, other = learner_of("alexnet_gap"), learner_of("alexnet_gap")
    one.step(images, targets, slots=8)
    # What two processes do: each the mean over its own half, then the mean of both gradients.
    total = [
        image_losses(other.network(images[half] / 255), targets[half], False).sum() / 4
        for half in (slice(0, 4), slice(4, 8))
    ]
    (sum(total) / 2).backward()
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        expected = theirs.detach() - 0.01 * (theirs.grad + 5e-4 * theirs.detach())
        torch.testing.assert_close(mine.detach(), expected, rtol=1e-4, atol=1e-7)


def test_an_image_that_is_missing_counts_nothing():
    images, targets = a_batch(4)
    one, other, none = (learner_of("alexnet_gap") for _ in range(3))
    one.step(images, targets, slots=8)
    (image_losses(other.network(images / 255), targets, False).sum() / 8).backward()
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        expected = theirs.detach() - 0.01 * (theirs.grad + 5e-4 * theirs.detach())
        torch.testing.assert_close(mine.detach(), expected, rtol=1e-4, atol=1e-7)
    before = [parameter.clone() for parameter in none.network.parameters()]
    assert len(none.step(images[:0], targets[:0], slots=4).losses) == 0
    for mine, old in zip(none.network.parameters(), before, strict=True):
        torch.testing.assert_close(mine.detach(), old.detach() * (1 - 0.01 * 5e-4))


def test_a_restored_learner_goes_on_as_if_nothing_had_been():
    images, targets = a_batch()
    straight, stopped = learner_of("camlake_demo"), learner_of("camlake_demo")
    straight.step(images, targets, slots=4)
    stopped.step(images, targets, slots=4)
    resumed = learner_of("camlake_demo")
    resumed.restore(stopped.state())
    for learner in (straight, resumed):
        learner.step(images.flip(3), targets, slots=4)
    assert resumed.steps_done == straight.steps_done == 2
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_with_weights_in_fp32(precision):
    learner = learner_of("camlake_demo", precision=precision)
    answer = learner.step(*a_batch(), slots=4)
    assert answer.logits.dtype == torch.float32
    assert {parameter.dtype for parameter in learner.network.parameters()} == {torch.float32}
    evaluated = learner.evaluate(*a_batch())
    assert evaluated.losses.shape == (4,)
    plain = learner_of("camlake_demo")
    plain.step(*a_batch(), slots=4)
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(learner.network.state_dict()[name], value, rtol=0.02, atol=2e-3, msg=name)


def test_a_step_that_leaves_float16s_range_changes_nothing_but_the_scale():
    learner = learner_of("alexnet_gap", precision="fp16")
    before, scale = learner.state(), learner.state()["scaler"]["scale"]
    images, targets = a_batch()
    learner.step(images * 1e30, targets, slots=4)
    after = learner.state()
    assert after["scaler"]["scale"] == scale / 2
    for name, value in before["network"].items():
        assert torch.equal(value, after["network"][name]), name
    resumed = learner_of("alexnet_gap", precision="fp16")
    resumed.restore(after)
    assert resumed.state()["scaler"] == after["scaler"]


PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8))


def test_the_whole_picture_and_its_mirror():
    planes = PICTURES.permute(0, 3, 1, 2).float()
    whole = draw_views("none", 0, 0, np.arange(3))
    torch.testing.assert_close(take_views(PICTURES, whole, 8), planes, rtol=0, atol=1e-3)
    views = draw_views("flip", 0, 0, np.arange(64))
    assert sorted(set(views[:, 0, 0].tolist())) == [-1.0, 1.0]
    mirror = whole.clone()
    mirror[:, 0, 0] = -1
    torch.testing.assert_close(take_views(PICTURES, mirror, 8), planes.flip(3), rtol=0, atol=1e-3)


def test_a_crop_of_whole_pixels_is_that_part():
    # Columns 4 to 8 and rows 2 to 6 of 8: centre (0.5, 0) in [-1, 1], half the side.
    view = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 0.5, 0.0]]]).expand(3, 2, 3)
    expected = PICTURES[:, 2:6, 4:8].permute(0, 3, 1, 2).float()
    torch.testing.assert_close(take_views(PICTURES, view, 4), expected, rtol=0, atol=1e-3)


def test_views_are_the_images_own_and_stay_inside():
    views = draw_views("crop", 3, 1, np.arange(200)).numpy()
    size, place = np.abs(views[:, [0, 1], [0, 1]]), views[:, :, 2]
    assert (np.abs(place) + size <= 1 + 1e-6).all()
    assert (size.prod(1) > 0.18).all()
    assert np.array_equal(draw_views("crop", 3, 1, np.array([77, 5])).numpy(), views[[77, 5]])
    assert not np.array_equal(draw_views("crop", 3, 2, np.arange(200)).numpy(), views)
    assert (picture_side(224, "crop"), picture_side(224, "flip")) == (256, 224)


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 3))
def test_every_image_comes_once_before_any_comes_again(n_images, batch_size, epoch):
    order = epoch_order(n_images, batch_size, 7, epoch)
    assert order.shape == (math.ceil(n_images / batch_size), batch_size)
    flat = order.reshape(-1)
    assert sorted(flat[:n_images]) == list(range(n_images))
    assert np.array_equal(flat, epoch_order(n_images, batch_size, 7, epoch).reshape(-1))


def test_the_best_epoch_and_the_end():
    progress = Progress()
    scores = [(0.5, 1.0), (0.6, 1.1), (0.6, 0.9), (0.6, 0.9), (0.4, 0.1)]
    found = [progress.add({"train_loss": 1.0, "val_top1": top1, "val_loss": loss}) for top1, loss in scores]
    assert found == [True, True, True, False, False]
    assert progress.best_epoch == 3
    assert [progress.ended(9, patience) for patience in (None, 2, 3)] == [False, True, False]
    assert progress.ended(5, None)
    lost = Progress()
    assert not lost.ended(2, None)
    assert not lost.add({"train_loss": math.nan})
    assert lost.best is None
    assert lost.ended(9, None)
