"""How a network arranges its last features, and how they become maps (B, K, h, w)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["maps", "channels last", "tokens"]
"""(B, K, h, w), (B, h, w, K), or (B, P + h·w, K) with P prefix tokens and the positions row by row."""


@dataclass(frozen=True)
class Layout:
    """The arrangement of a network's last features; the positions of tokens are those of a square."""

    form: Form
    prefix: int = 0
    """P, the number of tokens in front of the positions, such as a class token; they are no part of a map."""

    def maps(self, features: Tensor) -> Tensor:
        """Return the network's ``features`` as maps (B, K, h, w); prefix tokens are left out."""
        if self.form == "tokens":
            return tokens_as_maps(features, self.prefix)
        return features.permute(0, 3, 1, 2) if self.form == "channels last" else features

    def features(self, maps: Tensor) -> Tensor:
        """Return ``maps`` (B, K, h, w) in the network's arrangement; prefix tokens are zero."""
        if self.form == "maps":
            return maps
        if self.form == "channels last":
            return maps.permute(0, 2, 3, 1)
        tokens = maps.flatten(2).transpose(1, 2)
        return torch.cat([tokens.new_zeros(len(tokens), self.prefix, tokens.shape[2]), tokens], dim=1)


def tokens_as_maps(tokens: Tensor, prefix: int) -> Tensor:
    """Return tokens (B, P + n·n, K) as maps (B, K, n, n); raises ValueError where the positions fill no square."""
    positions = tokens.shape[1] - prefix
    side = math.isqrt(positions)
    if side * side != positions:
        raise ValueError(f"{positions} tokens fill no square")
    return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), tokens.shape[2], side, side)


torch.fx.wrap("tokens_as_maps")  # A traced trunk calls it as it is: its side follows from the input of each pass.


def layouts_of(features: Tensor, prefix: int | None) -> tuple[Layout, ...]:
    """Return the arrangements that ``features`` of a square input may have, the likeliest first; () where none.

    ``prefix``: the number of prefix tokens; None: as few as leave a square.
    """
    if features.ndim == 4:
        _, first, middle, last = features.shape
        if first != middle:
            return (Layout("maps"),)
        return (Layout("maps"), Layout("channels last")) if middle == last else (Layout("channels last"),)
    if features.ndim == 3:
        count = features.shape[1]
        spare = count - math.isqrt(count) ** 2 if prefix is None else prefix
        side = math.isqrt(max(count - spare, 0))
        return (Layout("tokens", spare),) if side > 0 and side * side == count - spare else ()
    return ()
