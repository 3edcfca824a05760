"""Score a trained network on test scenes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.arrays import figures
from pipeline.arrays.boxes import foreground_levels, level_boxes
from pipeline.arrays.maps import quantize
from pipeline.arrays.metrics import IOU_DELTA, V2_DELTAS, accuracy_curves, best_threshold, paired_iou
from pipeline.models.localize.engine import Engine
from pipeline.models.localize.methods import METHODS
from pipeline.models.localize.runtime import Runtime
from pipeline.models.networks.network import CamNetwork
from tests.benchmarks.study.scene_sets import SceneSet
from tests.benchmarks.study.study_networks import MapWay, Way

PAPER_THRESHOLD = 0.2
"""The CAM paper's threshold, as a share of the map's maximum."""
AT_ONCE = 100
"""Scenes of a forward pass."""


@dataclass(frozen=True)
class WayScores:
    """Scores of one way of localizing on N test scenes, for the class of each scene's label."""

    threshold: float | None
    """Threshold of the min–max scaled map for ``right``, chosen on other scenes; None for boxes without a map."""
    right: NDArray[np.float64]
    """(N,) 1 where the box at that threshold has IoU >= 0.5, else 0; the mean is MaxBoxAcc."""
    right_v2: NDArray[np.float64]
    """(N,) the mean over V2_DELTAS of the same with the boxes of all components; the mean is MaxBoxAccV2."""
    iou: NDArray[np.float64]
    """(N,) IoU of the paper's box, cut at 20 % of the map's maximum."""
    extent: NDArray[np.float64]
    """(N,) area of the paper's box divided by the area of the true box; 0 where the map has no box."""
    pointed: NDArray[np.float64] | None
    """(N,) 1 where the map's maximum lies inside the true box; None for boxes without a map."""


def predictions(network: CamNetwork, scenes: SceneSet, device: str) -> NDArray[np.int64]:
    """Return (N,): the most probable class of each scene."""
    with torch.inference_mode():
        parts = [network(pixels).logits.argmax(1).cpu() for pixels, _ in batches(network, scenes, device)]
    return torch.cat(parts).numpy()


def found_by(network: CamNetwork, way: Way, choose: SceneSet, test: SceneSet, device: str) -> WayScores:
    """Return the scores of one way of localizing on the scenes ``test``, with thresholds chosen on ``choose``."""
    if way == "regress":
        return _from_boxes(regressed(network, test, device), test.boxes)
    chosen, shown = (class_maps(network, way, scenes, device) for scenes in (choose, test))
    sweep_chosen, sweep = (_sweep(maps, scenes) for maps, scenes in ((chosen, choose), (shown, test)))
    threshold = best_threshold(accuracy_curves(sweep_chosen.largest_iou, [IOU_DELTA])[0], figures.THRESHOLDS)
    right = sweep.largest_iou[:, _place(threshold)] >= IOU_DELTA
    curves = accuracy_curves(sweep_chosen.any_iou, V2_DELTAS)
    places = [_place(best_threshold(curve, figures.THRESHOLDS)) for curve in curves]
    right_v2 = np.mean([sweep.any_iou[:, at] >= delta for at, delta in zip(places, V2_DELTAS, strict=True)], axis=0)
    paper = paper_boxes(shown, test.pixels.shape[1])
    return WayScores(
        threshold,
        right.astype(np.float64),
        right_v2,
        paired_iou(paper, test.boxes),
        areas(paper) / areas(test.boxes),
        sweep.pointed.astype(np.float64),
    )


def class_maps(network: CamNetwork, way: MapWay, scenes: SceneSet, device: str) -> NDArray[np.float32]:
    """Return (N, h, w): the map of each scene's label class."""
    runtime = Runtime("cuda" if device == "cuda" else "cpu", "fp32", compile=False, threads=1, batch_size=AT_ONCE)
    method = METHODS[way](Engine(network, runtime), network.head)
    parts = []
    with torch.no_grad():
        for pixels, labels in batches(network, scenes, device):
            parts.append(method.maps(method.forward(pixels), labels[:, None])[:, 0].float().cpu())
    return torch.cat(parts).numpy()


def regressed(network: CamNetwork, scenes: SceneSet, device: str) -> NDArray[np.float64]:
    """Return (N, 4) xyxy: the boxes that a network with a box head gives, in pixels, clipped to the scenes."""
    head = network.box_head
    if head is None:
        raise ValueError(f"{network.name} has no box head")
    with torch.inference_mode():
        parts = [head(network.features(pixels)).cpu() for pixels, _ in batches(network, scenes, device)]
    boxes: NDArray[np.float64] = torch.cat(parts).double().clamp(0, 1).numpy()
    return np.asarray(boxes * scenes.pixels.shape[1])


def paper_boxes(maps: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Return (N, 4) xyxy in pixels: the largest component's box at 20 % of each map's maximum; zeros without a box."""
    tensor = torch.from_numpy(maps)
    found = level_boxes(tensor, foreground_levels(tensor, torch.tensor([PAPER_THRESHOLD])))
    boxes = np.zeros((len(maps), 4))
    boxes[found.map_index.numpy()] = found.boxes_xyxy.double().numpy() * (side / maps.shape[2])
    return boxes


def areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the areas (N,) of boxes (N, 4)."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def batches(network: CamNetwork, scenes: SceneSet, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels (B, S, S, 3) uint8 at the side S of the network's input, and labels (B,), both on the device."""
    side = network.preprocessing.image_size
    for start in range(0, len(scenes), AT_ONCE):
        pixels = torch.from_numpy(np.array(scenes.pixels[start : start + AT_ONCE])).to(device)
        labels = torch.from_numpy(scenes.labels[start : start + AT_ONCE]).to(device)
        yield enlarged(pixels, side), labels


def enlarged(pixels: Tensor, side: int) -> Tensor:
    """Resize ``pixels`` (B, S, S, 3) uint8 to another side, bilinear and rounded."""
    if pixels.shape[1] == side:
        return pixels
    planes = F.interpolate(pixels.permute(0, 3, 1, 2).float(), (side, side), mode="bilinear", align_corners=False)
    return planes.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _from_boxes(boxes: NDArray[np.float64], truth: NDArray[np.float64]) -> WayScores:
    iou = paired_iou(boxes, truth)
    right_v2 = np.mean([iou >= delta for delta in V2_DELTAS], axis=0)
    return WayScores(None, (iou >= IOU_DELTA).astype(np.float64), right_v2, iou, areas(boxes) / areas(truth), None)


def _sweep(maps: NDArray[np.float32], scenes: SceneSet) -> figures.Sweep:
    every = np.arange(len(scenes))
    sizes = np.full((len(scenes), 2), float(scenes.pixels.shape[1]))
    pairs = figures.Pairs(len(scenes), every, sizes, scenes.boxes, every, "half-open")
    stored, _, _ = quantize(maps)
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(every), AT_ONCE)]
    return figures.sweep_maps(pairs, [(stored[part], every[part]) for part in parts])


def _place(threshold: float) -> int:
    return int(np.argmin(np.abs(figures.THRESHOLDS - threshold)))
