"""Computes the figures of an epoch in metrics.jsonl from sums over the images of all processes."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.arrays.metrics import IOU_DELTA, paired_iou
from pipeline.graph.train.checkpoints import Epoch
from pipeline.models.learn.learner import StepResult


class EpochMetrics:
    """Sums over the training or the validation images of an epoch; the sums of several processes can be added."""

    def __init__(self, part: str, multi_label: bool) -> None:
        """``part`` is train or val; the names of the figures begin with it."""
        self._part, self._multi_label = part, multi_label
        self._sums = torch.zeros(6, dtype=torch.float64)

    def add(self, result: StepResult, targets: Tensor, true_boxes: Tensor | None) -> None:
        """Add a batch with ``targets`` (B, C), and ``true_boxes`` (B, 4) as shares of the picture, NaN where unknown.

        ``result`` may have fewer rows than B; its rows belong to the first images of the batch.
        """
        images = len(result.losses)
        right = result.logits.argmax(1) == targets[:images].argmax(1)
        sums = [result.losses.sum(), right.sum(), torch.tensor(images)]
        if result.boxes is not None and true_boxes is not None:
            true = true_boxes[:images].cpu()
            known = ~true.isnan().any(1)
            regressed_xyxy = result.boxes[known].clamp(0, 1).double().numpy()
            iou = torch.from_numpy(paired_iou(regressed_xyxy, true[known].double().numpy()))
            sums += [iou.sum(), (right[known] & (iou >= IOU_DELTA)).sum(), known.sum()]
        self._sums[: len(sums)] += torch.stack([each.double() for each in sums])

    def figures(self, reduced: Callable[[Tensor], Tensor]) -> Epoch:
        """Return the mean loss, the accuracy where images have one label, mean IoU and top-1 localization of boxes.

        Top-1 localization is the share of the images with a true box whose top class is right and whose box has
        IoU >= 0.5. ``reduced`` adds up the sums of all processes. A mean over no image is NaN.
        """
        loss, right, images, iou, localized, boxed = reduced(self._sums).tolist()
        part, nothing = self._part, float("nan")
        figures = {f"{part}_loss": loss / images if images else nothing, f"{part}_images": images}
        if not self._multi_label:
            figures[f"{part}_top1"] = right / images if images else nothing
        if boxed:
            figures |= {f"{part}_iou": iou / boxed, f"{part}_top1_loc": localized / boxed}
        return figures
