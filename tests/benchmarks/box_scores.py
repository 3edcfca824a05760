"""Score exact boxes on photographs with true boxes, beside OpenCV's boxes at the size of the photograph."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from jobs.benchmark.machine import Figures
from pipeline.annotate.reporter import Reporter
from pipeline.arrays import metrics
from pipeline.arrays.boxes import level_boxes
from pipeline.arrays.figures import THRESHOLDS, Pairs
from pipeline.images.resize import map_to_image_xyxy
from pipeline.models.networks.network import CamNetwork
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from pipeline.storage.truth.truth import Truth, read_truth
from schemas.options.config import StorageConfig
from tests.references.opencv_boxes import THRESHOLD, agreement, component_boxes, upsampled

TOPK = 5
_BATCH = 32


class MapsOfPhotographs(NamedTuple):
    """N photographs with maps of their most probable classes, and P pairs of a photograph and a true class in it."""

    sizes_hw: NDArray[np.int64]
    """(N, 2) height and width in pixels."""
    best: NDArray[np.float32]
    """(N, TOPK, h, w) maps of the most probable classes."""
    pairs: Pairs
    pair_maps: NDArray[np.float32]
    """(P, h, w) maps of the pairs: of the classes that fit the truth, the class with the highest logit."""
    pair_rank: NDArray[np.int64]
    """(P,) the rank of that class among all classes; 0 is the most probable."""


def photograph_scores(model: str, weights: str, images: str, truth: str, reporter: Reporter) -> Figures:
    """Return how well the exact boxes agree with OpenCV's on a folder of photographs, and the scores of both."""
    loaded = load_weights(model, weights, None)
    network = load_network(model, loaded.state, None, preprocessing=loaded.preprocessing)
    maps = localized(network, Path(images), read_truth(truth, StorageConfig()))
    overlap = overlap_with_opencv(maps)
    verdicts = agreement(maps.best.reshape(-1, *maps.best.shape[2:]))
    figures: Figures = {
        f"{model} mean IoU of exact and OpenCV boxes": float(overlap.mean()),
        f"{model} 5th percentile of it": float(np.quantile(overlap, 0.05)),
        f"{model} maps that agree within a pixel of 8×": verdicts["agrees"] / verdicts.total(),
        f"{model} unexplained": verdicts["unexplained"],
    }
    for name, (exact, opencv) in scores_of_both(maps, THRESHOLDS).items():
        figures |= {f"{model} {name} exact": exact, f"{model} {name} OpenCV": opencv}
        reporter.say(f"{model} {name}: exact {exact:.4f}, OpenCV {opencv:.4f}")
    return figures


def localized(network: CamNetwork, images: Path, truth: Truth) -> MapsOfPhotographs:
    """Run the network on the JPEG files of ``images`` that have truth, squashed to the network's input size."""
    files, pairs, image = known_photographs(images, truth)
    parts = []
    for start in range(0, len(files), _BATCH):
        photographs = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in files[start : start + _BATCH]]
        own = (image >= start) & (image < start + len(photographs))
        fitting = [truth.class_ids[pair] for pair in pairs[own]]
        parts.append(_maps(network, photographs, image[own] - start, fitting))
    sizes_hw, best, pair_maps, rank = (np.concatenate(each) for each in zip(*parts, strict=True))
    return MapsOfPhotographs(sizes_hw, best, pairs_of(truth, pairs, image, sizes_hw), pair_maps, rank)


def known_photographs(images: Path, truth: Truth) -> tuple[list[Path], NDArray[np.int64], NDArray[np.int64]]:
    """Return the N JPEG files that have truth, and for P pairs their index in ``truth`` (P,) and in the files (P,)."""
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"})
    place = truth.match([path.as_posix() for path in files])
    shown = np.unique(place[place >= 0])
    pairs = np.argsort(place, kind="stable")[(place < 0).sum() :]
    return [files[index] for index in shown], pairs, np.searchsorted(shown, place[pairs])


@torch.inference_mode()
def _maps(
    network: CamNetwork, photographs: list[NDArray[np.uint8]], image: NDArray[np.int64], fitting: list[tuple[int, ...]]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return the columns sizes_hw, best, pair_maps and pair_rank of MapsOfPhotographs for one batch.

    ``image`` (P,) is the index of each pair's photograph in the batch; ``fitting`` are the class ids that fit the pair.
    """
    side = network.preprocessing.image_size
    squashed = [cv2.resize(pixels, (side, side), interpolation=cv2.INTER_LINEAR) for pixels in photographs]
    features = network.features(torch.from_numpy(np.stack(squashed)))
    logits = network.head(features).logits
    own = logits[image]
    chosen = torch.tensor([max(ids, key=lambda one: scores[one]) for scores, ids in zip(own, fitting, strict=True)])
    return (
        np.array([pixels.shape[:2] for pixels in photographs]),
        network.head.class_maps(features, logits.topk(TOPK).indices).numpy(),
        network.head.class_maps(features[image], chosen[:, None])[:, 0].numpy(),
        (own > own.gather(1, chosen[:, None])).sum(dim=1).numpy(),
    )


def pairs_of(truth: Truth, pairs: NDArray[np.int64], image: NDArray[np.int64], sizes_hw: NDArray[np.int64]) -> Pairs:
    """Return the truth's pairs with the indices ``pairs`` (P,), in that order; ``image`` (P,) are their photographs."""
    number = np.full(len(truth.keys), -1)
    number[pairs] = np.arange(len(pairs))
    owner = number[truth.owner]
    boxes = np.argsort(owner, kind="stable")[(owner < 0).sum() :]
    return Pairs(
        n_images=len(sizes_hw),
        image=image,
        sizes_wh=sizes_hw[image][:, ::-1].astype(np.float64),
        boxes=truth.boxes_xyxy[boxes],
        owner=owner[boxes],
        convention="half-open",
    )


def overlap_with_opencv(maps: MapsOfPhotographs) -> NDArray[np.float64]:
    """Return the IoU (M,) of the exact box and OpenCV's box, in the photograph's pixels.

    The M maps are those of ``maps.best`` that have a positive value.
    """
    flat, sizes_hw = maps.best.reshape(-1, *maps.best.shape[2:]), np.repeat(maps.sizes_hw, TOPK, axis=0)
    positive = flat.max(axis=(1, 2)) > 0
    cut = Cut(np.array([THRESHOLD]), from_minimum=False)
    return metrics.paired_iou(
        cut.exact_boxes(flat[positive], sizes_hw[positive]), cut.opencv_boxes(flat[positive], sizes_hw[positive])
    )[:, 0]


def scores_of_both(maps: MapsOfPhotographs, sweep: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    """Return for each score its value with exact boxes and its value with OpenCV's boxes.

    The scores are GT-known, top-1 localization and MaxBoxAcc (the best accuracy of the thresholds ``sweep`` (T,)).
    """
    sizes_hw = maps.pairs.sizes_wh[:, ::-1].astype(np.int64)
    paper, scaled = Cut(np.array([THRESHOLD]), from_minimum=False), Cut(sweep, from_minimum=True)
    exact = _scores(maps, paper.exact_boxes(maps.pair_maps, sizes_hw), scaled.exact_boxes(maps.pair_maps, sizes_hw))
    opencv = _scores(maps, paper.opencv_boxes(maps.pair_maps, sizes_hw), scaled.opencv_boxes(maps.pair_maps, sizes_hw))
    return {name: (exact[name], opencv[name]) for name in exact}


def _scores(maps: MapsOfPhotographs, paper: NDArray[np.float64], scaled: NDArray[np.float64]) -> dict[str, float]:
    at_paper, at_scaled = (
        maps.pairs.iou(boxes.reshape(-1, 4), np.repeat(np.arange(len(boxes)), boxes.shape[1])).reshape(len(boxes), -1)
        for boxes in (paper, scaled)
    )
    hits = metrics.localization_hits(maps.pairs.image, maps.pair_rank, at_paper[:, 0], maps.pairs.n_images, top=1)
    return {
        "GT-known": float((at_paper >= metrics.IOU_DELTA).mean()),
        "top-1 localization": float(hits.mean()),
        "MaxBoxAcc": float(metrics.max_box_acc(metrics.accuracy_curves(at_scaled, [metrics.IOU_DELTA]))[0]),
    }


class Cut(NamedTuple):
    """The levels at which maps are cut: shares of the range from 0, or from the map's minimum, to its maximum."""

    thresholds: NDArray[np.float64]
    """(T,) shares of that range."""
    from_minimum: bool

    def exact_boxes(self, maps: NDArray[np.float32], sizes_hw: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return boxes (M, T, 4) xyxy in pixels: each map's largest component at each threshold; zeros without one.

        ``maps`` are (M, h, w), ``sizes_hw`` (M, 2) in pixels.
        """
        levels = torch.from_numpy(np.stack([self._levels(grid) for grid in maps]))
        found = level_boxes(torch.from_numpy(maps), levels)
        place, column = found.map_index.numpy(), found.level_index.numpy()
        boxes = np.zeros((*levels.shape, 4))
        boxes[place, column] = map_to_image_xyxy(found.boxes_xyxy.numpy(), maps.shape[1:], sizes_hw[place])
        return boxes

    def opencv_boxes(self, maps: NDArray[np.float32], sizes_hw: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the same boxes by OpenCV, from each map upsampled to its photograph's size.

        The levels come from the minimum and maximum of the upsampled map.
        """
        boxes = np.zeros((len(maps), len(self.thresholds), 4))
        for row, (grid, (height, width)) in enumerate(zip(maps, sizes_hw.tolist(), strict=True)):
            surface = upsampled(grid, (height, width))
            for column, level in enumerate(self._levels(surface)):
                found, _ = component_boxes(surface, level)
                boxes[row, column] = found[0] if len(found) else 0
        return boxes

    def _levels(self, surface: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = surface.min() if self.from_minimum else 0.0, surface.max()
        return low + self.thresholds * (high - low) if high > low else np.full(len(self.thresholds), np.inf)
