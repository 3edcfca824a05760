"""The figure/ground map: a direction in a network's stride-16 tensor that tells object from background.

The cells of the last tensor of stride 16 know object from background. Their first principal component v, learned
without labels from a few hundred photographs, is a constant of the network. The map of an image is v·(cell − μ), each
cell's vector scaled to length 1 before. Multiplied with a class activation map it carves the blob to the object.

Maps are scaled to [0, 1] before they are fused (``min_max``): N is the class's map, P the figure/ground map.

| combination | fused map |
|---|---|
| product | N·P |
| sum | (N + P) / 2 |
| sumprod | (N + P) / 2 + N·P |

Shapes: B images, K channels, h×w cells, n classes of each image.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.arrays.boxes import level_boxes
from pipeline.arrays.metrics import RESAMPLES
from schemas.options.box_rules import Combination

LEAST_COSINE = 0.9
"""The directions of two halves of the images agree at least so well, else the direction is not stable.

Useful tensors of five networks had .92 to .99; one that tells nothing (MobileNetV2 ``features[13]``) had .007.
"""
FOLDS = 6
"""Parts that the images are divided into: three of them against the other three are ten pairs of halves.

One pair alone says little: SqueezeNet's ten pairs on 300 photographs have |cos| from .83 to .97.
"""
AREA_SHARE = 0.58
"""Mean share of the picture that boxes of the most probable classes cover at the threshold that truth would choose.

Measured with five networks on photographs like ImageNet's. The threshold at which boxes cover as much loses at most
1.6 points of GT-known.
"""
CONSTANT = 1e-6
"""A map whose values differ by less than this share of the greatest of them is constant but for rounding."""
_TAILS = (0.025, 0.975)


class Moments(NamedTuple):
    """Sums over the cells of I images, on the CPU in float64."""

    cells: Tensor
    """(I,) number of cells of each image."""
    sums: Tensor
    """(I, K) sum of each image's unit vectors."""
    weighted: Tensor
    """(I, K) sum of each image's unit vectors times N, the scaled map of the image's most probable class."""
    weights: Tensor
    """(I, 2) sum of N and of N squared."""
    fold: Tensor
    """(I,) int64: which of FOLDS parts the image belongs to."""
    products: Tensor
    """(FOLDS, K, K) sum of the outer products of the unit vectors, of the images of each part."""


class Direction(NamedTuple):
    """What was learned of a tensor, and how far it can be trusted."""

    mean: Tensor
    """(K,) float32: μ."""
    vector: Tensor
    """(K,) float32: v, of length 1; it points to where the class maps are high."""
    explained: float
    """Share of the cells' variance that lies along v."""
    halves_cosine: float
    """Mean |cos| between the directions of two halves of the images, over all pairs of halves."""
    correlation: float
    """Correlation of v·(cell − μ) with the class maps over all cells; never negative."""
    interval: tuple[float, float]
    """95 % interval of the correlation: images are drawn anew, v stays."""

    @property
    def refusal(self) -> str | None:
        """Return why the direction must not be used; None where it is stable."""
        if not self.halves_cosine >= LEAST_COSINE:
            return (
                f"two halves of the images give directions with |cos| {self.halves_cosine:.2f}; "
                f"allowed: {LEAST_COSINE:g} or more"
            )
        low, high = self.interval
        if not low > 0:
            return f"its sign can't be told: the correlation with the class maps is between {low:+.2f} and {high:+.2f}"
        return None


def unit_cells(tensor: Tensor) -> Tensor:
    """Return the cells of ``tensor`` (B, K, h, w) as float32 vectors (B, h·w, K) of length 1; a zero vector stays."""
    return F.normalize(tensor.float().flatten(2).transpose(1, 2), dim=2)


def min_max(maps: Tensor) -> Tensor:
    """Return maps (…, h, w) scaled to [0, 1] each; a constant map, which says nothing, becomes ones.

    A cell that is not finite becomes 0 and does not count for the others.
    """
    finite = torch.isfinite(maps)
    low = maps.where(finite, torch.inf).amin((-2, -1), keepdim=True)
    high = maps.where(finite, -torch.inf).amax((-2, -1), keepdim=True)
    span = high - low
    constant = ~(span > CONSTANT * torch.maximum(low.abs(), high.abs()))
    scaled = ((maps - low) / span).where(~constant, 1.0)
    return scaled.where(finite, 0.0)


def resized(maps: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Return maps (B, n, h, w) as (B, n, H, W), bilinear between cell centres; maps of that size as they are."""
    if tuple(maps.shape[2:]) == tuple(size_hw):
        return maps
    return F.interpolate(maps, tuple(size_hw), mode="bilinear", align_corners=False)


def moments(tensor: Tensor, class_maps: Tensor, first: int = 0) -> Moments:
    """Return the sums over the cells of ``tensor`` (B, K, h, w).

    ``class_maps`` (B, H, W), of any size: the map of each image's most probable class. ``first`` is the number of the
    first image, which says the images' parts. An image with a value that is not finite is left out.
    """
    finite = torch.isfinite(tensor).flatten(1).all(1) & torch.isfinite(class_maps).flatten(1).all(1)
    cells = unit_cells(tensor[finite])
    weights = min_max(resized(class_maps[finite, None].float(), tensor.shape[2:])).flatten(1)
    fold = (torch.arange(first, first + len(tensor), device=tensor.device) % FOLDS)[finite]
    parts = [cells[fold == number].flatten(0, 1) for number in range(FOLDS)]
    found = Moments(
        torch.full((len(cells),), cells.shape[1], dtype=torch.float64),
        cells.double().sum(1),
        torch.einsum("bck,bc->bk", cells.double(), weights.double()),
        torch.stack([weights.double().sum(1), weights.double().square().sum(1)], dim=1),
        fold,
        torch.stack([part.T @ part for part in parts]).double(),
    )
    return Moments(*(column.cpu() for column in found))


def joined(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all images of ``parts``; raises ValueError where there is no part."""
    if not parts:
        raise ValueError("moments of no image")
    cells, sums, weighted, weights, fold = (torch.cat(column) for column in list(zip(*parts, strict=True))[:-1])
    products = torch.stack([part.products for part in parts]).sum(0)
    return Moments(cells, sums, weighted, weights, fold, products)


def direction(found: Moments, seed: int = 0) -> Direction:
    """Return the mean and the first principal component of all cells, its sign by the class maps.

    ``seed`` fixes the bootstrap. Where all cells are equal or all class maps are constant, the correlation is 0 and the
    direction is refused. Raises ValueError where one of the FOLDS parts has no image.
    """
    if len(set(found.fold.tolist())) < FOLDS:
        raise ValueError(f"the direction of {len(found.fold)} images: needs {FOLDS} or more")
    mean, vector, variance, total = _first_component(found.cells, found.sums, found.products.sum(0))
    cosines = [(_half(found, half) @ _half(found, other)).abs() for half, other in _pairs_of_halves()]
    along = found.sums @ vector - found.cells * (mean @ vector)
    crossed = found.weighted @ vector - found.weights[:, 0] * (mean @ vector)
    rows = torch.cat([torch.stack([found.cells, along, crossed], dim=1), found.weights], dim=1)
    correlation = float(_correlations(rows.sum(0), variance))
    sign = -1.0 if correlation < 0 else 1.0
    drawn = sign * _correlations(_draws(len(rows), seed) @ rows, variance)
    low, high = drawn.quantile(drawn.new_tensor(_TAILS)).tolist()
    return Direction(
        mean.float(),
        (sign * vector).float(),
        float(variance / total) if total > 0 else 0.0,
        float(torch.stack(cosines).mean()),
        abs(correlation),
        (low, high),
    )


def _pairs_of_halves() -> list[tuple[list[int], list[int]]]:
    """Return all divisions of the parts into two halves, as numbers of parts."""
    halves = [[0, *others] for others in combinations(range(1, FOLDS), FOLDS // 2 - 1)]
    return [(half, [part for part in range(FOLDS) if part not in half]) for half in halves]


def _half(found: Moments, parts: Sequence[int]) -> Tensor:
    """Return the first principal component (K,) of the images of some parts."""
    own = torch.isin(found.fold, torch.tensor(parts))
    return _first_component(found.cells[own], found.sums[own], found.products[list(parts)].sum(0))[1]


def _first_component(cells: Tensor, sums: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return μ (K,), v (K,), the variance along v and the variance in all, of the cells of some images."""
    count = cells.sum()
    mean = sums.sum(0) / count
    covariance = products / count - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, vectors[:, -1], values[-1].clamp(min=0), covariance.trace()


def _correlations(rows: Tensor, variance: Tensor) -> Tensor:
    """Return the correlations (…) of p and N from sums (…, 5) of 1, p, p·N, N and N², where p has ``variance``."""
    count, along, crossed, weight, squared = rows.unbind(-1)
    covariance = crossed / count - along / count * (weight / count)
    spread = (variance * (squared / count - (weight / count) ** 2)).clamp(min=0).sqrt()
    return (covariance / spread).where(spread > CONSTANT**2, 0.0).clamp(-1, 1)


def _draws(n_images: int, seed: int) -> Tensor:
    """Return (RESAMPLES, I): how often each draw of I images takes each of them."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_images, (RESAMPLES, n_images), generator=generator)
    times = torch.zeros(RESAMPLES, n_images, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones_like(times))


def project(tensor: Tensor, mean: Tensor, vector: Tensor) -> Tensor:
    """Return the figure/ground maps (B, h, w) float32 of ``tensor`` (B, K, h, w): v·(cell / |cell| − μ).

    ``mean`` and ``vector`` (K,) are on the device of ``tensor``. A cell that is not finite gives NaN.
    """
    maps = tensor.float()
    along = torch.einsum("bkhw,k->bhw", maps, vector)
    projected: Tensor = along / maps.norm(dim=1).clamp(min=1e-12) - mean @ vector
    return projected


def fuse(class_maps: Tensor, figure: Tensor, combination: Combination) -> Tensor:
    """Return the fused maps (B, n, H, W) of class maps (B, n, h, w) and figure/ground maps (B, h', w'), in [0, 1].

    Both cover the same part of the image; on each axis the finer of both has the say. A constant map leaves the say to
    the other one; where both are constant, so is the fused map, all ones.
    """
    size_hw = [max(pair) for pair in zip(class_maps.shape[2:], figure.shape[1:], strict=True)]
    of_class = min_max(resized(class_maps.float(), size_hw))
    ground = min_max(resized(figure.float()[:, None], size_hw))
    match combination:
        case "product":
            fused = of_class * ground
        case "sum":
            fused = (of_class + ground) / 2
        case "sumprod":
            fused = (of_class + ground) / 2 + of_class * ground
    return min_max(fused)


def box_areas(maps: Tensor, thresholds: Tensor) -> Tensor:
    """Return (N, T): the share of the map that the largest component's box covers, 0 without one.

    ``maps`` (N, h, w) are scaled to [0, 1], ``thresholds`` (T,).
    """
    found = level_boxes(maps, thresholds.expand(len(maps), -1))
    widths, heights = (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).unbind(1)
    areas = maps.new_zeros(len(maps), len(thresholds))
    areas[found.map_index, found.level_index] = widths * heights / (maps.shape[1] * maps.shape[2])
    return areas


def area_matched(areas: Tensor, thresholds: Tensor) -> float:
    """Return the threshold of (T,) at which the mean of ``areas`` (N, T) is closest to AREA_SHARE, the lowest of such.

    Raises ValueError where there is no map.
    """
    if not len(areas):
        raise ValueError("the threshold of no map")
    return float(thresholds[(areas.mean(0) - AREA_SHARE).abs().argmin()])
