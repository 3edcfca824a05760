"""Figure/ground arithmetic against scikit-learn's PCA, and fused maps against NumPy and OpenCV by hand."""

import cv2
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from pipeline.arrays import figure_ground as foreground
from pipeline.arrays.figure_ground import area_matched, box_areas, direction, fuse, joined, min_max, moments, project

CHANNELS, SIDE = 12, 6


def objects(count: int, seed: int = 0, sign: float = 1.0, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors (N, K, 6, 6) whose middle points one way and whose ring the other, and 3×3 class maps of it."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, CHANNELS)[:, None, None]
    figure = torch.zeros(SIDE, SIDE)
    figure[1:5, 1:5] = 1
    tensor = 2 + noise * torch.randn(count, CHANNELS, SIDE, SIDE, generator=generator) + sign * figure * axis
    maps = torch.zeros(count, 3, 3)
    maps[:, 1, 1] = 1
    return tensor, maps + 0.05 * torch.randn(count, 3, 3, generator=generator)


def learned(tensor: torch.Tensor, maps: torch.Tensor, batch: int = 7) -> foreground.Direction:
    return direction(
        joined([moments(tensor[i : i + batch], maps[i : i + batch], i) for i in range(0, len(tensor), batch)])
    )


def by_hand(tensor: np.ndarray) -> np.ndarray:
    cells = tensor.transpose(0, 2, 3, 1).reshape(-1, CHANNELS)
    return cells / np.linalg.norm(cells, axis=1, keepdims=True)


def test_the_direction_is_that_of_scikit_learn_and_points_to_the_objects():
    tensor, maps = objects(30)
    found = learned(tensor, maps)
    pca = PCA(1).fit(by_hand(tensor.numpy().astype(np.float64)))
    assert abs(float(found.vector @ torch.tensor(pca.components_[0]).float())) == pytest.approx(1, abs=1e-6)
    assert found.mean.numpy() == pytest.approx(pca.mean_, abs=1e-6)
    assert found.explained == pytest.approx(pca.explained_variance_ratio_[0], rel=1e-4)
    map_of_first = project(tensor[:1], found.mean, found.vector)[0]
    assert map_of_first[1:5, 1:5].mean() > map_of_first[0].mean()
    assert found.refusal is None
    assert found.halves_cosine > 0.98
    projected = project(tensor, found.mean, found.vector).flatten().numpy()
    heat = np.stack([cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for one in maps.numpy()])
    low, high = heat.min((1, 2), keepdims=True), heat.max((1, 2), keepdims=True)
    expected = np.corrcoef(projected, ((heat - low) / (high - low)).flatten())[0, 1]
    assert found.correlation == pytest.approx(expected, abs=1e-5)
    assert found.interval[0] < found.correlation < found.interval[1]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_sign_follows_the_class_maps(sign: float):
    found = learned(*objects(24, sign=sign))
    axis = torch.linspace(-1, 1, CHANNELS)
    assert float(found.vector @ axis) * sign > 0


def test_batches_of_any_size_give_the_same_direction():
    tensor, maps = objects(20)
    one, other = learned(tensor, maps, batch=1), learned(tensor, maps, batch=20)
    assert torch.allclose(one.vector, other.vector, atol=1e-6)
    assert one.interval == pytest.approx(other.interval, abs=1e-6)


def test_a_corpus_whose_sign_cannot_be_told_is_refused_with_its_reason():
    tensor, maps = objects(30)
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(3))
    assert "its sign can't be told" in (learned(tensor, noise).refusal or "")
    assert "its sign can't be told" in (learned(tensor, torch.ones_like(maps)).refusal or "")


def test_a_direction_on_which_halves_disagree_is_refused():
    tensor = torch.randn(30, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    assert "two halves of the images" in (learned(tensor, objects(30)[1]).refusal or "")


def test_pictures_of_one_colour_are_refused():
    tensor = torch.ones(12, CHANNELS, SIDE, SIDE)
    assert learned(tensor, torch.ones(12, 3, 3)).refusal is not None


def test_one_image_has_no_direction():
    with pytest.raises(ValueError, match="the direction of 1 images: needs 6 or more"):
        learned(*objects(1))
    with pytest.raises(ValueError, match="moments of no image"):
        joined([])


def test_images_with_values_that_are_not_finite_are_left_out():
    tensor, maps = objects(20)
    broken = tensor.clone()
    broken[3, 2, 1, 1] = torch.nan
    broken_maps = maps.clone()
    broken_maps[8, 0, 0] = torch.inf
    found = joined([moments(broken, broken_maps)])
    assert len(found.cells) == 18
    kept = [image for image in range(20) if image not in (3, 8)]
    others = PCA(1).fit(by_hand(tensor.numpy()[kept].astype(np.float64))).components_[0]
    assert abs(float(direction(found).vector.double() @ torch.tensor(others))) == pytest.approx(1, abs=1e-6)


def scaled(grid: np.ndarray) -> np.ndarray:
    return (grid - grid.min()) / (grid.max() - grid.min())


@pytest.mark.parametrize("combination", ["product", "sum", "sumprod"])
def test_fused_maps_are_those_by_hand(combination: str):
    generator = np.random.default_rng(0)
    class_maps = generator.normal(size=(2, 3, 7, 7)).astype(np.float32)
    figure = generator.normal(size=(2, 14, 14)).astype(np.float32)
    fused = fuse(torch.from_numpy(class_maps), torch.from_numpy(figure), combination).numpy()
    for image in range(2):
        ground = scaled(figure[image])
        for slot in range(3):
            heat = scaled(cv2.resize(class_maps[image, slot], (14, 14), interpolation=cv2.INTER_LINEAR))
            both = {"product": heat * ground, "sum": (heat + ground) / 2}
            both["sumprod"] = both["product"] + both["sum"]
            assert fused[image, slot] == pytest.approx(scaled(both[combination]), abs=1e-5)


@pytest.mark.parametrize("combination", ["product", "sum", "sumprod"])
def test_a_constant_map_leaves_the_say_to_the_other_one(combination: str):
    grid = torch.rand(1, 1, 5, 5)
    flat = torch.full((1, 1, 5, 5), 3.7)
    assert torch.allclose(fuse(grid, flat[:, 0], combination), min_max(grid), atol=1e-6)
    assert torch.allclose(fuse(flat, grid[:, 0], combination), min_max(grid), atol=1e-6)
    assert (fuse(flat, flat[:, 0], combination) == 1).all()


def test_the_finer_map_has_the_say_on_each_axis():
    assert fuse(torch.rand(1, 2, 28, 7), torch.rand(1, 14, 14), "product").shape == (1, 2, 28, 14)


def test_cells_that_are_not_finite_are_the_lowest_and_do_not_count():
    grid = torch.tensor([[1.0, torch.nan], [3.0, torch.inf]])
    assert min_max(grid).tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert (min_max(torch.full((2, 2), torch.nan)) == 0).all()


def test_the_area_matched_threshold():
    ramp = torch.linspace(0, 1, 10).expand(1, 10, 10)
    thresholds = torch.arange(1, 50) / 50
    areas = box_areas(ramp, thresholds)
    assert bool((areas.diff() <= 0).all())
    # {M >= t} is the right part of the picture; at the outermost cells the surface is level.
    assert area_matched(areas, thresholds) == pytest.approx(0.42, abs=0.05)
    with pytest.raises(ValueError, match="the threshold of no map"):
        area_matched(areas[:0], thresholds)
