"""Learning rates over the steps of a training, and its optimizer."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from schemas.options.train import Schedule

PAPER_STEP = 0.1
"""Factor of the paper's learning rate after each quarter of the steps: after every 40,000 of 160,000."""
MOMENTUM = 0.9
"""Momentum of the paper's SGD."""
WARM_UP = 0.05
"""Fraction of the steps in which the modern learning rate rises."""


@dataclass(frozen=True)
class Recipe:
    """The schedule of the learning rate and the other settings of the optimizer and the loss."""

    schedule: Schedule
    steps: int
    """Number of steps of the whole training."""
    rate: float
    """Highest learning rate, that of layers which start from random values."""
    pretrained_share: float
    """Factor of that learning rate for pretrained layers."""
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
        """Return a recipe of ``steps`` steps; the schedule's default replaces every argument that is None."""
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
        """Return the factor, in (0, 1], of the learning rate at ``step``, from 0 to ``steps`` - 1.

        paper: 1, 0.1, 0.01, 0.001 in the four quarters of the steps. modern: a straight rise to 1 over the first
        twentieth, then half a cosine, which would reach 0 after the last step.
        """
        if self.schedule == "paper":
            return PAPER_STEP ** (4 * step // self.steps)
        rising = math.ceil(WARM_UP * self.steps)
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising + 1) / (self.steps - rising + 1)))


def make_optimizer(network: nn.Module, recipe: Recipe, new: Collection[str]) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that learn; ``highest_rate`` of a group is its rate at factor 1.

    Parameters named ``new`` have the recipe's rate; others have it times ``pretrained_share``. The modern recipe has no
    weight decay on biases and normalizations.
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
