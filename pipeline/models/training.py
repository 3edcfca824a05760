"""How a network learns from labelled images: losses, learning rates, one step, evaluation. Torch alone.

Shapes: B images, C classes. Targets are (B, C) float32: 1 where the class is on the image, else 0; with one label an
image each row has a single 1.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.network import Preprocessing
from schemas.config import Precision, Schedule

PAPER_STEP = 0.1
"""Factor of the paper's learning rate after each third of the steps."""
MOMENTUM = 0.9
WARM_UP = 0.05
"""Share of the steps in which the modern learning rate rises."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How the weights follow the gradients."""

    schedule: Schedule
    steps: int
    """Of the whole training."""
    rate: float
    """Highest learning rate, of layers that start from random values."""
    pretrained_share: float
    """What pretrained layers take of it."""
    weight_decay: float
    label_smoothing: float

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        steps: int,
        rate: float | None = None,
        weight_decay: float | None = None,
        label_smoothing: float | None = None,
    ) -> "Recipe":
        """Return a recipe of ``steps`` steps, with the schedule's own values for what is None."""
        own_rate, share, own_decay, own_smoothing = {
            "modern": (1e-3, 0.1, 0.05, 0.1),
            "paper": (1e-3, 1.0, 5e-4, 0.0),
        }[schedule]
        return cls(
            schedule,
            steps,
            own_rate if rate is None else rate,
            share,
            own_decay if weight_decay is None else weight_decay,
            own_smoothing if label_smoothing is None else label_smoothing,
        )

    def rate_factor(self, step: int) -> float:
        """Return what the learning rate of step 0 to ``steps`` - 1 is multiplied with, in (0, 1].

        paper: 1, 0.1, 0.01 in the first, second and last third. modern: a straight rise to 1 over the first twentieth,
        then half a cosine, which would reach 0 after the last step.
        """
        if self.schedule == "paper":
            return PAPER_STEP ** (3 * step // self.steps)
        rising = math.ceil(WARM_UP * self.steps)
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising + 1) / (self.steps - rising + 1)))


def image_losses(logits: Tensor, targets: Tensor, multi_label: bool, label_smoothing: float = 0.0) -> Tensor:
    """Return the loss (B,) of each image.

    One label an image: cross-entropy of the softmax, with ``label_smoothing`` of the target spread over all classes.
    ``multi_label``: mean over the classes of the binary cross-entropy of their sigmoids.
    """
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def mean_average_precision(scores: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """Return the mean over classes of the average precision of ``scores`` (N, C) for ``targets`` (N, C) of 0 and 1.

    AP = Σ over thresholds of (recall gained) · precision; images of one score come together. Classes without an image
    don't count; NaN where that leaves none.
    """
    found = [_average_precision(scores[:, c], targets[:, c] > 0) for c in np.flatnonzero(targets.any(axis=0))]
    return float(np.mean(found)) if found else math.nan


def _average_precision(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(right[order])[last_of_score]
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / (last_of_score + 1)))


def freeze(network: nn.Module, trained: Collection[str]) -> None:
    """Let only the parameters named ``trained`` learn."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)


def set_to_train(network: nn.Module) -> None:
    """Put the network in training mode, but for batch normalization whose layer is frozen: its statistics stay too."""
    network.train()
    for layer in network.modules():
        # torch has no public name for what all batch normalizations are.
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not any(
            parameter.requires_grad for parameter in layer.parameters()
        ):
            layer.eval()


def make_optimizer(network: nn.Module, recipe: Recipe, new: Collection[str]) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that learn; each group's ``highest_rate`` is its rate at factor 1.

    Parameters named ``new`` take the recipe's rate, others the pretrained share of it. The modern recipe has no weight
    decay on biases and normalizations.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = recipe.schedule == "paper" or parameter.ndim > 1
            groups.setdefault((name in new, decays), []).append(parameter)
    described: list[dict[str, Any]] = [
        {
            "params": parameters,
            "highest_rate": recipe.rate * (1.0 if is_new else recipe.pretrained_share),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (is_new, decays), parameters in groups.items()
    ]
    if recipe.schedule == "paper":
        return torch.optim.SGD(described, lr=recipe.rate, momentum=MOMENTUM)
    return torch.optim.AdamW(described, lr=recipe.rate)


class Answer(NamedTuple):
    """What a batch came to."""

    logits: Tensor
    """(B, C) float32, without gradients, on the CPU."""
    losses: Tensor
    """(B,) the same way."""


class Learner:
    """A network that learns, with its optimizer; nothing else of a training has state."""

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        recipe: Recipe,
        *,
        new: Collection[str],
        multi_label: bool = False,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        parallel: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        """``network`` takes normalized images; its parameters named ``new`` have random values, the others pretrained.

        ``precision`` is that of autocast; the weights stay float32. ``parallel`` wraps the network so that gradients
        are averaged over processes.
        """
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.steps_done = 0
        self._recipe, self._multi_label, self._device = recipe, multi_label, torch.device(device)
        self._autocast = _AUTOCAST.get(precision)
        self._forward = parallel(self.network) if parallel else self.network
        self._optimizer = make_optimizer(self.network, recipe, new)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        self._mean, self._std = 255 * mean.to(device), 255 * std.to(device)

    def step(self, images: Tensor, targets: Tensor, slots: int) -> Answer:
        """Learn from a batch: images (B, 3, S, S) float32 of values 0 to 255, on the device.

        The gradient is that of the sum of the losses over ``slots``, the images that a step was planned with on this
        process, so that a missing image counts nothing, and the mean over processes is that of one large batch.
        """
        set_to_train(self.network)
        for group in self._optimizer.param_groups:
            group["lr"] = group["highest_rate"] * self._recipe.rate_factor(self.steps_done)
        empty = not len(images)
        if empty:  # The other processes wait for this one's gradients.
            images, targets = images.new_zeros(2, *images.shape[1:]), targets.new_zeros(2, *targets.shape[1:])
        logits = self._logits(self._forward, images)
        losses = image_losses(logits, targets.to(self._device), self._multi_label, self._recipe.label_smoothing)
        total = losses.sum() * (0 if empty else 1) / slots
        self._scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self.steps_done += 1
        kept = 0 if empty else len(logits)
        return Answer(logits.detach()[:kept].cpu(), losses.detach()[:kept].cpu())

    @torch.inference_mode()
    def evaluate(self, images: Tensor, targets: Tensor) -> Answer:
        """Return what the network as it is says of a batch; the loss has no label smoothing."""
        self.network.eval()
        logits = self._logits(self.network, images)
        return Answer(logits.cpu(), image_losses(logits, targets.to(self._device), self._multi_label).cpu())

    @property
    def rate(self) -> float:
        """Highest learning rate of the last step."""
        rates: list[float] = [group["lr"] for group in self._optimizer.param_groups]
        return max(rates)

    def state(self) -> dict[str, Any]:
        """Return all that ``restore`` needs, tensors on the CPU."""
        return {
            "network": _on_cpu(self.network.state_dict()),
            "optimizer": _on_cpu(self._optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
            "steps_done": self.steps_done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the ``state`` of another learner of the same network and recipe stood."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.steps_done = state["steps_done"]

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        normalized = ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            logits: Tensor = network(normalized)
        return logits.float()


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_on_cpu(part) for part in value]
    return value
