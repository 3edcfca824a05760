"""How a network learns from labelled images, with or without boxes: losses, one step, evaluation.

Shapes: B images, C classes. Targets are (B, C) float32: 1 where the image has the class, else 0; with one label an
image each row has a single 1. True boxes are (B, 4) in the form of ``box_head``, NaN where the image has no box.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.learn.recipe import Recipe, make_optimizer
from pipeline.models.networks.box_head import BOX_WEIGHT, box_losses
from pipeline.models.networks.network import Preprocessing
from schemas.options.config import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def image_losses(logits: Tensor, targets: Tensor, multi_label: bool, label_smoothing: float = 0.0) -> Tensor:
    """Return the loss (B,) of each image.

    With one label an image it is the cross-entropy of the softmax, with ``label_smoothing`` of the target spread over
    all classes. With ``multi_label`` it is the mean over the classes of the binary cross-entropy of their sigmoids.
    """
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def mean_average_precision(scores: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """Return the mean over classes of the average precision of ``scores`` (N, C) for ``targets`` (N, C) of 0 and 1.

    AP = Σ over thresholds of (recall gained) · precision. Classes without an image are left out. Returns NaN where no
    class is left or a score is not finite.
    """
    # The import takes a second, and few trainings have several labels an image.
    from sklearn.metrics import average_precision_score  # noqa: PLC0415

    seen = targets.any(axis=0)
    if not seen.any() or not np.isfinite(scores).all():
        return math.nan
    return float(average_precision_score(targets[:, seen], scores[:, seen]))


def freeze(network: nn.Module, trained: Collection[str]) -> None:
    """Let only the parameters named ``trained`` have gradients."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)


def set_to_train(network: nn.Module) -> None:
    """Put the network in training mode; batch normalization with frozen parameters keeps its statistics unchanged."""
    network.train()
    for layer in network.modules():
        # torch has no public name for the common class of all batch normalizations.
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not any(
            parameter.requires_grad for parameter in layer.parameters()
        ):
            layer.eval()


class StepResult(NamedTuple):
    """Outputs and losses of a batch."""

    logits: Tensor
    """(B, C) float32, without gradients, on the CPU."""
    losses: Tensor
    """(B,) float32, without gradients, on the CPU."""
    boxes: Tensor | None = None
    """(B, 4) float32, without gradients, on the CPU; None for a network without a box head."""


class Learner:
    """A network that learns, with its optimizer: the whole state of a training."""

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        recipe: Recipe,
        *,
        new: Collection[str],
        boxed: nn.Module | None = None,
        multi_label: bool = False,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        parallel: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        """``network`` takes normalized images; its parameters named ``new`` have random values, the others are trained.

        ``boxed`` is a BoxedNetwork with the layers of ``network``, for learning boxes too. ``precision`` is that of
        autocast; the weights stay float32. ``parallel`` wraps the network so that gradients are averaged over
        processes.
        """
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.steps_done = 0
        self._recipe, self._multi_label, self._device = recipe, multi_label, torch.device(device)
        self._autocast = _AUTOCAST.get(precision)
        self._whole = boxed or self.network
        self._forward = parallel(self._whole) if parallel else self._whole
        self._optimizer = make_optimizer(self.network, recipe, new)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        self._mean, self._std = 255 * mean.to(device), 255 * std.to(device)

    def step(self, images: Tensor, targets: Tensor, slots: int, true_boxes: Tensor | None = None) -> StepResult:
        """Learn from a batch: images (B, 3, S, S) float32 of values 0 to 255, on the device.

        The loss of an image is the loss of its class, plus ``BOX_WEIGHT`` times the loss of its box if it has one. The
        gradient is that of the sum of the losses divided by ``slots``, the number of images that were planned for a
        step of this process. A missing image therefore counts as loss 0, and the mean over the processes equals the
        gradient of one large batch.
        """
        set_to_train(self.network)
        for group in self._optimizer.param_groups:
            group["lr"] = group["highest_rate"] * self._recipe.rate_factor(self.steps_done)
        empty = not len(images)
        if empty:  # The other processes wait for the gradients of this process.
            images, targets = images.new_zeros(2, *images.shape[1:]), targets.new_zeros(2, *targets.shape[1:])
            true_boxes = None if true_boxes is None else true_boxes.new_full((2, 4), torch.nan)
        logits, boxes = self._outputs(self._forward, images)
        losses = self._losses(logits, targets, boxes, true_boxes, self._recipe.label_smoothing)
        total = losses.sum() * (0 if empty else 1) / slots
        self._scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self.steps_done += 1
        kept = 0 if empty else len(logits)
        return _step_result(
            logits.detach()[:kept], losses.detach()[:kept], boxes if boxes is None else boxes.detach()[:kept]
        )

    @torch.inference_mode()
    def evaluate(self, images: Tensor, targets: Tensor, true_boxes: Tensor | None = None) -> StepResult:
        """Return outputs and losses of a batch like that of ``step``, without learning and without label smoothing."""
        self.network.eval()
        logits, boxes = self._outputs(self._whole, images)
        losses = self._losses(logits, targets, boxes, true_boxes, 0.0)
        return _step_result(logits, losses, boxes)

    @property
    def rate(self) -> float:
        """Highest learning rate of the last step, over the groups of parameters."""
        rates: list[float] = [group["lr"] for group in self._optimizer.param_groups]
        return max(rates)

    def state(self) -> dict[str, Any]:
        """Return the state that ``restore`` takes, with its tensors on the CPU."""
        return {
            "network": _on_cpu(self.network.state_dict()),
            "optimizer": _on_cpu(self._optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
            "steps_done": self.steps_done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the ``state`` of another learner of the same network and recipe."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.steps_done = state["steps_done"]

    def _outputs(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C), and boxes (B, 4) from a BoxedNetwork, in float32."""
        normalized = ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            output = network(normalized)
        logits, boxes = (output, None) if isinstance(output, Tensor) else output
        return logits.float(), boxes

    def _losses(
        self, logits: Tensor, targets: Tensor, boxes: Tensor | None, true_boxes: Tensor | None, label_smoothing: float
    ) -> Tensor:
        losses = image_losses(logits, targets.to(self._device), self._multi_label, label_smoothing)
        if boxes is None or true_boxes is None:
            return losses
        return losses + BOX_WEIGHT * box_losses(boxes, true_boxes.to(self._device))


def _step_result(logits: Tensor, losses: Tensor, boxes: Tensor | None) -> StepResult:
    return StepResult(logits.cpu(), losses.cpu(), None if boxes is None else boxes.cpu())


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_on_cpu(part) for part in value]
    return value
