"""Finds the structure of a network: its last maps, global average pooling and the one linear layer behind it.

Nothing is taken from a list of names. What a network's parts do is tried out: features of random values, laid out as
the network has them, go through the part behind the last features, and the logits must be those of a head that camlake
has.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.models.networks.found.feature_layout import Layout, layouts_of
from pipeline.models.networks.found.found_heads import AffineHead, OpaqueHead
from pipeline.models.networks.found.parts import BehindMaps, FoundTrunk
from pipeline.models.networks.found.splits import Split, Way, split_again, splits_of
from pipeline.models.networks.found.tracing import traces
from pipeline.models.networks.heads import LinearHead, NetworkHead, NormedHead, PointwiseLinear
from schemas.errors import ModelError

Kind = Literal["linear", "normed", "affine", "opaque"]
"""The head: one linear layer; one behind a layer normalization; layers that amount to one; no exact class maps."""
TOLERANCE = 1e-3
"""Greatest difference of logits that counts as rounding, in standard deviations of the logits."""


@dataclass(frozen=True)
class Structure:
    """Where a network is cut, and the head that it has."""

    way: Way
    layer: str
    """Where the last maps are, see ``Split``."""
    linear: str
    """Dotted name of the last linear layer."""
    layout: Layout
    kind: Kind
    channels: int
    """K, the number of maps."""
    classes: int
    """C, the number of logits of the network that was looked at."""
    traces: bool = False
    """Whether torch.fx follows the part up to the last maps."""
    norm: str | None = None
    """Dotted name of a layer normalization between the average and the linear layer."""
    refusal: str | None = None
    """Why the network has no exact class activation map; None where it has one."""

    def cut(self, module: nn.Module) -> tuple[nn.Module, NetworkHead]:
        """Return trunk and head of a network of this structure; they share its layers."""
        split = split_again(module, self.way, self.layer, self.linear)
        trunk = FoundTrunk(split.features, self.layout, traces=self.traces)
        return trunk, _head(module, split, self)

    @property
    def about(self) -> str:
        """The head in words."""
        pooled = {"maps": "GAP", "channels last": "GAP", "tokens": "mean of the tokens"}[self.layout.form]
        behind = {
            "linear": "linear",
            "normed": "layer normalization, linear",
            "affine": "layers that amount to one linear layer",
            "opaque": "layers that are not affine: no exact map",
        }[self.kind]
        return f"{pooled}, {behind}" if self.kind != "opaque" else behind


@torch.no_grad()
def find_structure(module: nn.Module, side_px: int, names: tuple[str, str] | None = None) -> Structure:
    """Return the structure of ``module`` at square inputs of ``side_px``.

    The module's values are changed: constant parameters become random, so that no layer goes unnoticed. ``names``: the
    user's names of the layer that gives the last features and of the linear layer. Raises ModelError, which says why,
    where there are no feature maps, or where the logits depend on more than the maps.
    """
    module.eval()
    generator = torch.Generator().manual_seed(5)
    _stir(module, generator)
    images = torch.randn(2, 3, side_px, side_px, generator=generator)
    logits = _tensor(module(images), "its forward pass")
    first: Structure | None = None
    reasons: list[str] = []
    for split in splits_of(module, images, names):
        features = _tensor(split.features(images), split.layer)
        found = _examined(module, split, features, logits, generator)
        if isinstance(found, str):
            reasons.append(found)
        elif found.refusal is None:
            return _traced(module, found, images)
        else:
            first = first or found
    if first is None:
        raise ModelError(reasons[0])
    return _traced(module, first, images)


def _traced(module: nn.Module, found: Structure, images: Tensor) -> Structure:
    trunk = FoundTrunk(split_again(module, found.way, found.layer, found.linear).features, found.layout, traces=True)
    follows = found.way != "names" and traces(trunk, images)
    return replace(found, traces=follows)


def _examined(
    module: nn.Module, split: Split, features: Tensor, logits: Tensor, generator: torch.Generator
) -> Structure | str:
    """Return the structure of one split, with a refusal where its head has no exact map; else why it is none."""
    layouts = layouts_of(features, split.prefix)
    if not layouts:
        return f"its last features, at {split.layer}, are {tuple(features.shape)}: no maps, and no square of tokens"
    refused: Structure | None = None
    for layout in layouts:
        if layout.maps(features)[0, 0].numel() < 2:
            continue
        if split.tail is None:
            found = _plain_head(module, split, layout, layout.maps(features), logits)
            if found:
                return found
            continue
        if not close(_tensor(split.tail(features), "its forward_head"), logits):
            return f"its logits are not those of what stands behind {split.layer}: it takes more than the last maps"
        noise = torch.randn(features.shape, generator=generator) + 0.5
        found = _plain_head(module, split, layout, layout.maps(noise), split.tail(noise))
        found = found or _other_head(module, split, layout, noise, generator)
        if found and found.refusal is None:
            return found
        refused = refused or found
    return refused or _why_not(module, split, layouts[0], features, logits)


def _plain_head(module: nn.Module, split: Split, layout: Layout, maps: Tensor, logits: Tensor) -> Structure | None:
    """Return the structure with one linear layer behind the averages or behind their layer normalization."""
    linear, averages = _linear(module, split.linear), maps.mean((2, 3))
    if linear.in_features != averages.shape[1]:
        return None
    if close(linear(averages), logits):
        return Structure(split.way, split.layer, split.linear, layout, "linear", maps.shape[1], logits.shape[1])
    for name, norm in module.named_modules():
        fits = isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (linear.in_features,)
        if fits and norm.weight is not None and norm.bias is not None:
            head = NormedHead(norm, linear)
            if close(head(maps).logits, logits):
                return Structure(
                    split.way, split.layer, split.linear, layout, "normed", maps.shape[1], logits.shape[1], norm=name
                )
    return None


def _other_head(
    module: nn.Module, split: Split, layout: Layout, features: Tensor, generator: torch.Generator
) -> Structure | None:
    """Return the structure with other layers behind the maps; None where the logits depend on prefix tokens."""
    assert split.tail is not None
    behind, maps, logits = BehindMaps(split.tail, layout), layout.maps(features), split.tail(features)
    averages = maps.mean((2, 3), keepdim=True)
    averaging = _of_cells(behind, averages)
    if averaging is not None and close(averaging, logits):
        one = averages + torch.randn(averages.shape, generator=generator)
        other = averages + torch.randn(averages.shape, generator=generator)
        mixed = behind(0.3 * one + 0.7 * other)
        if close(mixed, 0.3 * behind(one) + 0.7 * behind(other)):
            return Structure(split.way, split.layer, split.linear, layout, "affine", maps.shape[1], logits.shape[1])
        layers = _layers_behind(behind, averages)
        why = f"layers that are not affine stand behind the average ({layers})"
    elif close(behind(maps), logits):
        pooling, layers = _pooling_of(module), _layers_behind(behind, maps)
        averages_late = f"layers stand between its last maps and the average ({layers})"
        if _linear(module, split.linear).in_features == maps[0].numel():
            averages_late = f"{split.linear} takes the values of all positions, not their mean"
        why = f"it pools by {pooling}, not by the mean over positions" if pooling else averages_late
    else:
        return None
    refusal = f"{why}; give --method layercam, or use timm/convnext_tiny or timm/efficientnet_b0"
    return Structure(
        split.way, split.layer, split.linear, layout, "opaque", maps.shape[1], logits.shape[1], refusal=refusal
    )


def _of_cells(behind: nn.Module, averages: Tensor) -> Tensor | None:
    """Return the logits of maps of one cell; None for a part that takes maps of a fixed size."""
    try:
        result: Tensor = behind(averages)
    except (RuntimeError, AssertionError, ValueError):
        return None
    return result


def _layers_behind(behind: nn.Module, averages: Tensor) -> str:
    """Return the names of the classes of the layers that run behind the averages, without those that change nothing."""
    called: list[str] = []
    idle = (nn.Identity, nn.Dropout, nn.Flatten, nn.Linear, nn.Conv2d, nn.AdaptiveAvgPool2d, nn.Sequential)
    handles = [
        part.register_forward_hook(lambda layer, _inputs, _result: called.append(type(layer).__name__))
        for part in behind.modules()
        if not list(part.children()) and not isinstance(part, idle)
    ]
    try:
        behind(averages)
    finally:
        for handle in handles:
            handle.remove()
    return ", ".join(dict.fromkeys(called)) or "functions without a layer of their own"


def _why_not(module: nn.Module, split: Split, layout: Layout, features: Tensor, logits: Tensor) -> str:
    """Return why the logits follow from no mean over the positions of ``features``."""
    if split.tail is None:
        linear, averages = _linear(module, split.linear), layout.maps(features).mean((2, 3))
        if linear.in_features != averages.shape[1]:
            return (
                f"{split.layer} gives {averages.shape[1]} maps, but {split.linear} takes {linear.in_features} values:"
                " name the layer whose maps are averaged"
            )
        if linear.out_features != logits.shape[1]:
            return f"{split.linear} gives {linear.out_features} values, but the network {logits.shape[1]} logits"
        difference = float((linear(averages) - logits).abs().max())
        if split.way == "methods" and _pooling_of(module):
            return f"it pools by {_pooling_of(module)}, not by the mean over positions; use timm/convnext_tiny"
        return (
            f"{split.linear} of the averages of {split.layer} differs from the network's logits by up to"
            f" {difference:.3g}, where they have a deviation of {float(logits.std()):.3g}: name other layers"
        )
    if layout.prefix:
        return (
            f"it pools by {_pooling_of(module) or 'other means'}, not by the mean over positions; use one whose"
            " global_pool is avg, such"
            " as timm/vit_medium_patch16_reg4_gap_256, or timm/convnext_tiny"
        )
    pooling = _pooling_of(module) or "other means"
    return f"it pools by {pooling}, not by the mean over positions; use timm/convnext_tiny"


def _pooling_of(module: nn.Module) -> str:
    """Return the pooling as the network calls it; empty where it averages, or does not say."""
    pooling = getattr(module, "global_pool", None)
    if any("AttentionPool" in type(part).__name__ for part in module.modules()):
        return "attention"
    if pooling == "token" or (not pooling and _has_class_token(module)):
        return "its class token"
    return f"{pooling!r}" if isinstance(pooling, str) and pooling not in ("", "avg") else ""


def _has_class_token(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "cls_token" for name, _ in module.named_parameters())


def _linear(module: nn.Module, name: str) -> nn.Linear | PointwiseLinear:
    layer = module.get_submodule(name)
    return PointwiseLinear(layer) if isinstance(layer, nn.Conv2d) else layer  # type: ignore[return-value]


def _head(module: nn.Module, split: Split, structure: Structure) -> NetworkHead:
    linear = _linear(module, structure.linear)
    if structure.kind == "linear":
        return LinearHead(linear)
    if structure.norm is not None:
        norm = module.get_submodule(structure.norm)
        assert isinstance(norm, nn.LayerNorm)
        return NormedHead(norm, linear)
    assert split.tail is not None
    head = AffineHead if structure.kind == "affine" else OpaqueHead
    return head(BehindMaps(split.tail, structure.layout), structure.channels, linear.out_features)


def close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two batches of logits are equal up to rounding; a NaN is not."""
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= TOLERANCE * expected.std())


def _tensor(result: object, where: str) -> Tensor:
    if not isinstance(result, Tensor):
        raise ModelError(f"{where} gives a {type(result).__name__}, not one tensor; use another network")
    return result


def _stir(module: nn.Module, generator: torch.Generator) -> None:
    """Make constant parameters random: a scale of 1, a shift of 0 or a last layer of zeros would hide its layer."""
    for parameter in module.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
