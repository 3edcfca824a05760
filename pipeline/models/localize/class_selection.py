"""Which classes of each image get maps: the most probable ones, and those that somebody named."""

from collections.abc import Sequence

import torch
from torch import Tensor


def chosen_classes(
    probabilities: Tensor, topk: int, named: Sequence[Sequence[int]] | None, longest: int
) -> tuple[Tensor, Tensor]:
    """Return the ids (B, n) of the classes that get maps, and their ranks (B, n), ascending; C where none is left.

    ``probabilities``: (B, C). Chosen are the top-k and those ``named`` for each image, of which it may have
    ``longest``.
    """
    n_classes = probabilities.shape[1]
    if not named:
        ids = _most_probable(probabilities, topk)
        return ids, torch.arange(topk, device=ids.device).expand_as(ids)
    by_rank = _most_probable(probabilities, n_classes)
    chosen = torch.zeros_like(by_rank, dtype=torch.bool)
    chosen[[row for row, ids in enumerate(named) for _ in ids], [one for ids in named for one in ids]] = True
    chosen = chosen.gather(1, by_rank)
    chosen[:, :topk] = True
    places = torch.arange(n_classes, device=chosen.device)
    n_slots = min(n_classes, topk + longest)
    ranks = torch.where(chosen, places, n_classes).topk(n_slots, dim=1, largest=False).values
    return by_rank.gather(1, ranks.clamp(max=n_classes - 1)), ranks


def _most_probable(probabilities: Tensor, n: int) -> Tensor:
    """Return the ids (B, n) of the most probable of C classes, equal ones in the order of their ids.

    ``topk`` promises no order of equal values, so none are: the bits of a float32 that is not negative grow with it,
    and a 64-bit key has room for the id behind them.
    """
    ids = torch.arange(probabilities.shape[1], device=probabilities.device)
    keys = (probabilities.view(torch.int32).long() << 32) - ids
    return keys.topk(n, dim=1).indices
