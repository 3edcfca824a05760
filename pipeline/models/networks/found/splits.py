"""Takes a network apart behind its last features: by its methods, by torch.fx, or by the names of two layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, symbolic_trace

from pipeline.models.networks.found.parts import ForwardFeatures, ForwardHead, LayerOutput
from pipeline.models.networks.found.tracing import NOT_TRACED
from schemas.errors import ModelError

Way = Literal["methods", "graph", "names"]
"""How the last features were found: by ``forward_features``, in the graph of torch.fx, or by the user's names."""
_CANDIDATES = 6
"""The last features are among this many of the last tensors with positions; flattening and dropout may follow."""
LAYERS = (nn.Linear, nn.Conv2d)


class Split(NamedTuple):
    """A network in two parts that share its layers."""

    way: Way
    layer: str
    """Where the last features are: the name of a layer or of a node of the graph, or forward_features."""
    features: nn.Module
    """Normalized images (B, 3, H, W) to the last features, in the network's own arrangement."""
    tail: nn.Module | None
    """The last features to logits (B, C); None where only a layer was named."""
    linear: str
    """Dotted name of the last linear layer or 1×1 convolution."""
    prefix: int | None = None
    """Number of prefix tokens; None: not known."""


def splits_of(module: nn.Module, images: Tensor, names: tuple[str, str] | None) -> Iterator[Split]:
    """Yield the ways in which ``module``, in evaluation mode, may be taken apart, the likeliest first.

    ``names``: the user's names of the layer that gives the last features and of the linear layer. Raises ModelError,
    which says why, where there is none.
    """
    if names:
        yield _by_names(module, *names)
    elif all(hasattr(module, name) for name in ("forward_features", "get_classifier")):
        yield _by_methods(module)
    elif hasattr(module, "forward_features") and hasattr(module, "pretrained_cfg"):
        raise ModelError("it has no classifier: timm has it to encode pictures, not to classify them")
    else:
        yield from _by_graph(module, images)


def split_again(module: nn.Module, way: Way, layer: str, linear: str) -> Split:
    """Return a split that was found before, of a network of the same kind, such as one with other classes."""
    if way == "names":
        return _by_names(module, layer, linear)
    if way == "methods":
        return _by_methods(module)
    traced = _traced(module)
    node = next(node for node in traced.graph.nodes if node.name == layer)
    return _at(traced, node, linear)


def _by_names(module: nn.Module, layer: str, linear: str) -> Split:
    known = dict(module.named_modules())
    for option, name in (("--feature-layer", layer), ("--classifier-layer", linear)):
        if name not in known or not name:
            shown = ", ".join([one for one in known if one.count(".") == 0 and one][:12])
            raise ModelError(f"{option} {name}: the network has no such layer; its outermost are {shown}")
    if not isinstance(known[linear], LAYERS) or getattr(known[linear], "kernel_size", (1, 1)) != (1, 1):
        kind = type(known[linear]).__name__
        raise ModelError(f"--classifier-layer {linear}: is a {kind}; allowed: a Linear or a 1×1 Conv2d")
    return Split("names", layer, LayerOutput(module, layer), None, linear)


def _by_methods(module: Any) -> Split:
    classifier = module.get_classifier()
    first = classifier[0] if isinstance(classifier, tuple | list | nn.ModuleList) and classifier else classifier
    inside = [part for part in first.modules() if isinstance(part, LAYERS)] if isinstance(first, nn.Module) else []
    if not inside:
        raise ModelError("it has no classifier; train one with `camlake train`, or use a network that has one")
    linear = next(name for name, part in module.named_modules() if part is inside[-1])
    prefix = getattr(module, "num_prefix_tokens", None)
    tail = ForwardHead(module) if hasattr(module, "forward_head") else None
    return Split("methods", "forward_features", ForwardFeatures(module), tail, linear, prefix)


def _by_graph(module: nn.Module, images: Tensor) -> Iterator[Split]:
    try:
        traced = _traced(module)
    except NOT_TRACED as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"torch.fx can't follow its forward pass ({reason}): name its layers with --feature-layer and"
            f" --classifier-layer"
        ) from error
    linear = _last_linear(module, traced)
    recorded = _Recorder(traced)
    recorded.run(images)
    spatial = [node for node, result in recorded.results.items() if _has_positions(result)]
    if not spatial:
        raise ModelError("no tensor of its graph has positions: use a network that ends in feature maps")
    yield from (_at(traced, node, linear) for node in reversed(spatial[-_CANDIDATES:]))


def _traced(module: nn.Module) -> GraphModule:
    """Return the network's graph as in evaluation mode; it shares the network's layers."""
    with _evaluating(module):
        return symbolic_trace(module)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps the shape of each node's tensor."""

    def __init__(self, traced: GraphModule) -> None:
        super().__init__(traced)
        self.results: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op != "placeholder" and isinstance(result, Tensor):
            self.results[n] = result.shape
        return result


def _has_positions(shape: torch.Size) -> bool:
    return len(shape) in (3, 4) and all(side > 0 for side in shape) and max(shape[2:]) > 1


def _last_linear(module: nn.Module, traced: GraphModule) -> str:
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    names = called if any(isinstance(module.get_submodule(name), LAYERS) for name in called) else None
    for name in reversed(names or [name for name, _ in module.named_modules()]):
        if isinstance(module.get_submodule(name), LAYERS):
            return name
    raise ModelError("it has no linear layer: use a network that ends in one")


def _at(traced: GraphModule, node: Node, linear: str) -> Split:
    """Return the graph in two parts, behind ``node``; its tail is None where that needs more than the node's tensor."""
    first, second = Graph(), Graph()
    known: dict[Node, Node] = {}
    for one in traced.graph.nodes:
        known[one] = first.node_copy(one, known.__getitem__)
        if one is node:
            break
    first.output(known[node])
    later = {node: second.placeholder("features")}
    nodes = list(traced.graph.nodes)
    batch = [one for one in nodes if _is_batch_size(one)]
    for one in (*batch, *nodes[nodes.index(node) + 1 :]):
        if one in batch:
            later[one] = second.call_method("size", (later[node], 0))
        elif all(before in later for before in one.all_input_nodes):
            later[one] = second.node_copy(one, later.__getitem__)
    tail = _without_idle_nodes(traced, second) if any(one.op == "output" for one in later) else None
    return Split("graph", node.name, _without_idle_nodes(traced, first), tail, linear)


def _without_idle_nodes(traced: GraphModule, graph: Graph) -> GraphModule:
    part = GraphModule(traced, graph)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    part.recompile()
    return part


def _is_batch_size(node: Node) -> bool:
    """Return whether a node is the number of images, as ``x.size(0)`` or ``x.shape[0]`` give it of the input."""
    if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
        return isinstance(node.args[0], Node) and node.args[0].op == "placeholder"
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem" and node.args[1:] == (0,):
        shape = node.args[0]
        inner = shape.args[0] if isinstance(shape, Node) and shape.args else None
        named = isinstance(shape, Node) and (shape.target == "size" or shape.args[1:] == ("shape",))
        return named and isinstance(inner, Node) and inner.op == "placeholder"
    return False
