"""What an epoch comes to: the figures of metrics.jsonl, from sums over the images of all processes."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.arrays.metrics import IOU_DELTA, paired_iou
from pipeline.graph.train.checkpoints import Epoch
from pipeline.models.learn.steps import StepResult


class EpochMetrics:
    """Sums over the images of one part, training or validation; small enough to be added up over processes."""

    def __init__(self, part: str, multi_label: bool) -> None:
        """``part`` begins the names of the figures."""
        self._part, self._multi_label = part, multi_label
        self._sums = torch.zeros(6, dtype=torch.float64)

    def add(self, answer: StepResult, targets: Tensor, true_boxes: Tensor | None) -> None:
        """Count a batch: ``targets`` (B, C) and ``true_boxes`` (B, 4), NaN where unknown, as the learner got them."""
        images = len(answer.losses)
        right = answer.logits.argmax(1) == targets[:images].argmax(1)
        found = [answer.losses.sum(), right.sum(), torch.tensor(images)]
        if answer.boxes is not None and true_boxes is not None:
            true = true_boxes[:images].cpu()
            known = ~true.isnan().any(1)
            found_xyxy = answer.boxes[known].clamp(0, 1).double().numpy()
            iou = torch.from_numpy(paired_iou(found_xyxy, true[known].double().numpy()))
            found += [iou.sum(), (right[known] & (iou >= IOU_DELTA)).sum(), known.sum()]
        self._sums[: len(found)] += torch.stack([each.double() for each in found])

    def figures(self, reduced: Callable[[Tensor], Tensor]) -> Epoch:
        """Return mean loss, with one label an image the accuracy, and with boxes their mean IoU and top-1 localization.

        Top-1 localization is the share of images with a box whose class is on top and whose box has IoU >= 0.5.
        ``reduced`` adds up the sums of all processes.
        """
        loss, right, images, iou, localized, boxed = reduced(self._sums).tolist()
        part, nothing = self._part, float("nan")
        found = {f"{part}_loss": loss / images if images else nothing, f"{part}_images": images}
        if not self._multi_label:
            found[f"{part}_top1"] = right / images if images else nothing
        if boxed:
            found |= {f"{part}_iou": iou / boxed, f"{part}_top1_loc": localized / boxed}
        return found
