"""Select the classes of each image that get maps: the most probable classes, and the classes from ``--classes``."""

from collections.abc import Sequence

import torch
from torch import Tensor


def select_classes(
    probs: Tensor, topk: int, named: Sequence[Sequence[int]] | None, max_named: int
) -> tuple[Tensor, Tensor]:
    """Return the class ids (B, n) int64 that get maps, and their ranks (B, n) int64, ascending.

    - ``probs``: (B, C) float32, not negative; C >= ``topk``.
    - ``named``: for each image the ids of further classes, at most ``max_named``; None where no image has any.

    n is ``topk``, or with ``named`` at most ``topk + max_named``; an image with fewer classes has rank C in the slots
    that stay unused.
    """
    n_classes = probs.shape[1]
    if not named:
        ids = _most_probable(probs, topk)
        return ids, torch.arange(topk, device=ids.device).expand_as(ids)
    by_rank = _most_probable(probs, n_classes)
    selected = torch.zeros_like(by_rank, dtype=torch.bool)
    images = [image for image, ids in enumerate(named) for _ in ids]
    selected[images, [class_id for ids in named for class_id in ids]] = True
    selected = selected.gather(1, by_rank)
    selected[:, :topk] = True
    all_ranks = torch.arange(n_classes, device=selected.device)
    n_slots = min(n_classes, topk + max_named)
    ranks = torch.where(selected, all_ranks, n_classes).topk(n_slots, dim=1, largest=False).values
    return by_rank.gather(1, ranks.clamp(max=n_classes - 1)), ranks


def named_classes(class_ids: Tensor, classes: Sequence[Sequence[int]] | None) -> Tensor:
    """Return (B, n) bool: which of the chosen ``class_ids`` (B, n) the caller named in ``classes``."""
    if not classes or not any(classes):
        return torch.zeros_like(class_ids, dtype=torch.bool)
    longest = max(map(len, classes))
    named = torch.tensor([[*ids, *[-1] * (longest - len(ids))] for ids in classes], device=class_ids.device)
    return (class_ids[:, :, None] == named[:, None]).any(dim=2)


def _most_probable(probs: Tensor, n: int) -> Tensor:
    """Return the ids (B, n) of the n most probable of C classes; ties are ordered by class id.

    ``topk`` does not define the order of equal values, so all values are made different: the bits of a float32 >= 0
    grow with its value, and a 64-bit key has room for the class id behind these 32 bits.
    """
    ids = torch.arange(probs.shape[1], device=probs.device)
    keys = (probs.view(torch.int32).long() << 32) - ids
    return keys.topk(n, dim=1).indices
