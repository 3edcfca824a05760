"""How the networks of one family are cut into a trunk, which gives feature maps, and a head, which gives logits."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pipeline.models.networks.heads import ClassifierHead, ConvHead, LinearHead, NetworkHead, NormedHead, Pooling


@dataclass(frozen=True)
class Family:
    """Where the trunk of a network ends and which layers its head has."""

    head: str
    """Name of the first child module that does not belong to the trunk."""
    linear: str
    """Dotted name of the only linear layer, or 1×1 convolution, of the head."""
    about: str
    """The head and the place of the last ReLU, in words."""
    norm: str | None = None
    """Dotted name of a layer normalization between the average and the linear layer."""
    closing: tuple[Callable[[], nn.Module], ...] = ()
    """Layers without weights that the network's forward pass applies after the last child of the trunk."""
    unused: tuple[str, ...] = ()
    """Prefixes of the state dict's keys of auxiliary classifiers, which only training needs."""
    pooling: Pooling = "gap"
    """The global pooling in front of the linear layer."""
    stride16: str | None = None
    """Name of the last tensor of stride 16, as ``localize.stride16`` names it; None: it is found by its shape."""
    refusal: str | None = None
    """Why the network only classifies, and which network to use instead; None where it has exact maps."""
    cutter: Callable[[nn.Module], tuple[nn.Module, NetworkHead]] | None = None
    """Cuts a network whose structure was found; None: it is cut between its children, see ``cut``."""


def cut(module: nn.Module, family: Family) -> tuple[nn.Module, NetworkHead]:
    """Return the trunk of ``module``, images (B, 3, H, W) to feature maps (B, K, h, w), and its head.

    Trunk and head consist of the module's own layers and share its weights. Dropout in front of the linear layer is
    left out. Raises TypeError where ``family`` names layers of other kinds than a head can have.
    """
    if family.cutter is not None:
        return family.cutter(module)
    children = list(module.named_children())
    names = [name for name, _ in children]
    trunk = nn.Sequential()
    for name, child in children[: names.index(family.head)]:
        trunk.add_module(name, child)
    for layer in family.closing:
        trunk.append(layer())
    return trunk, _head(module, family)


def _head(module: nn.Module, family: Family) -> NetworkHead:
    match module.get_submodule(family.linear), family.norm and module.get_submodule(family.norm):
        case nn.Linear() as linear, None if family.refusal:
            *hidden, _ = module.get_submodule(family.linear.rpartition(".")[0]).children()
            return ClassifierHead(nn.Sequential(module.get_submodule(family.head), nn.Flatten(), *hidden), linear)
        case nn.Linear() as linear, None:
            return LinearHead(linear, family.pooling)
        case nn.Linear() as linear, nn.LayerNorm() as norm:
            return NormedHead(norm, linear)
        case nn.Conv2d() as conv, None:
            return ConvHead(conv, family.pooling)
        case layers:
            raise TypeError(f"no head for {layers}: the family's entry names the wrong layers")
