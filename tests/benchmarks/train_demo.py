"""Train the demo's network on drawn scenes and write its weights, which are installed with camlake.

    python -m tests.benchmarks.train_demo --out pipeline/models/weights/camlake_demo.safetensors

The network learns from class labels only, never from a box. Parts of the pictures are hidden in training (Singh & Lee
2017, arXiv 1704.04232), so no single part is enough to recognise a class, and the maps cover whole objects.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.arrays.boxes import foreground_levels, level_boxes
from pipeline.arrays.metrics import iou
from pipeline.images.synthetic.scenes import CLASSES, random_size, render_scene
from pipeline.models.networks.demo_network import IMAGE_SIZE, DemoNetwork
from pipeline.models.networks.own_networks import DEMO_WEIGHTS

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
HELD_OUT_EPOCH = 1_000_000
"""The epoch in the seed of the held-out scenes; no epoch of training has this number, so none repeats the scenes."""
TRAINING = 0x7261696E
"""Last number of every seed here. A corpus has seeds (seed, index), so it never repeats a scene of the training."""
BATCH = 64
LEARNING_RATE = 2e-3
HIDDEN_CELLS = 7
"""Cells on each side of the grid whose cells can be hidden: 7×7 cells of 16 pixels."""


class ScoredSet:
    """Scenes that are rendered once and squashed to the network's input size."""

    def __init__(self, n_images: int, seed: int, epoch: int) -> None:
        """Render scenes 0 to ``n_images`` - 1 of an epoch; the same arguments give the same pixels."""
        rendered = [_squashed_scene(seed, epoch, index) for index in range(n_images)]
        self.images = torch.from_numpy(np.stack([pixels for pixels, _ in rendered])).permute(0, 3, 1, 2)
        self.labels = torch.arange(n_images) % len(CLASSES)
        self.boxes = [boxes for _, boxes in rendered]
        """The true boxes (n, 4) xyxy of each image, as shares of width and height."""


def _squashed_scene(seed: int, epoch: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Render one scene; return its pixels at the network's input size and its boxes as shares of width and height."""
    rng = np.random.default_rng((seed, epoch, index, TRAINING))
    scene = render_scene(rng, index % len(CLASSES), random_size(rng))
    height, width = scene.pixels.shape[:2]
    how = cv2.INTER_AREA if rng.random() < 0.5 else cv2.INTER_LINEAR
    squashed = cv2.resize(scene.pixels, (IMAGE_SIZE, IMAGE_SIZE), interpolation=how)
    return np.asarray(squashed, np.uint8), scene.boxes_xyxy.astype(np.float64) / (width, height, width, height)


def _normalized(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN) / STD


def _augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Mirror half of the normalized images; in half of the images replace a random quarter of the cells by the mean."""
    n = len(images)
    mirrored = torch.rand(n, 1, 1, 1, generator=random) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    hidden = torch.rand(n, 1, HIDDEN_CELLS, HIDDEN_CELLS, generator=random) < 0.25
    hidden &= torch.rand(n, 1, 1, 1, generator=random) < 0.5
    cells = F.interpolate(hidden.float(), size=images.shape[2:], mode="nearest")
    return images * (1 - cells)


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    data: ScoredSet,
    random: torch.Generator,
) -> float:
    """Run once through ``data`` in random order; return the mean loss."""
    network.train()
    total = 0.0
    batches = torch.randperm(len(data.labels), generator=random).split(BATCH)
    for batch in batches:
        logits = network(_augmented(_normalized(data.images[batch]), random))
        loss = F.cross_entropy(logits, data.labels[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / len(batches)


@torch.inference_mode()
def _score(network: DemoNetwork, data: ScoredSet) -> tuple[float, float, float]:
    """Return top-1 accuracy, GT-known localization at threshold 0.2 and the mean IoU of those boxes."""
    network.eval()
    features = torch.cat([network.features(_normalized(batch)) for batch in data.images.split(256)])
    top1 = network.classifier(features.mean((2, 3))).argmax(1)
    maps = torch.einsum("bkhw,bk->bhw", features, network.classifier.weight[data.labels])
    found = level_boxes(maps, foreground_levels(maps, torch.tensor([0.2])))
    shares = found.boxes_xyxy.double().numpy() / maps.shape[-1]
    best = np.zeros(len(maps))
    for image, box in zip(found.map_index.tolist(), shares, strict=True):
        best[image] = iou(box[None], data.boxes[image]).max()
    return float((top1 == data.labels).float().mean()), float((best >= 0.5).mean()), float(best.mean())


def train(
    epochs: Annotated[int, typer.Option(help="runs through freshly rendered scenes")] = 18,
    scenes: Annotated[int, typer.Option(help="scenes of an epoch")] = 4000,
    seed: Annotated[int, typer.Option(help="of weights, scenes and order")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
    out: Annotated[Path, typer.Option(help="where the safetensors file goes")] = DEMO_WEIGHTS,
) -> None:
    """Train the demo's network, print its held-out scores and write the weights."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    random = torch.Generator().manual_seed(seed)
    network = DemoNetwork(len(CLASSES)).to(memory_format=torch.channels_last)
    steps = epochs * -(-scenes // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    held_out = ScoredSet(1000, seed, HELD_OUT_EPOCH)
    started = time.monotonic()
    for epoch in range(epochs):
        loss = _train_epoch(network, optimizer, schedule, ScoredSet(scenes, seed, epoch), random)
        top1, gt_known, mean_iou = _score(network, held_out)
        typer.echo(
            f"epoch {epoch + 1}/{epochs}  loss {loss:.3f}  held-out top-1 {top1:.3f}  "
            f"GT-known@0.2 {gt_known:.3f}  mean IoU {mean_iou:.3f}  {time.monotonic() - started:.0f} s"
        )
    _save(network, out, {"held_out_top1": f"{top1:.3f}", "held_out_gt_known": f"{gt_known:.3f}", "seed": str(seed)})
    typer.echo(f"wrote {out}: {out.stat().st_size / 1e6:.2f} MB")


def _save(network: DemoNetwork, out: Path, facts: dict[str, str]) -> None:
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    about = {"architecture": "camlake_demo", "image_size": str(IMAGE_SIZE), "labels": json.dumps(CLASSES), **facts}
    out.write_bytes(save(tensors, metadata=about))


if __name__ == "__main__":
    typer.run(train)
