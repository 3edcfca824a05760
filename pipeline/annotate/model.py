"""Loads the network of a configuration with its weights and its resize plan, once, before the run starts."""

import functools
from dataclasses import dataclass, replace

import torch

from pipeline.images.resize import ResizePlan
from pipeline.models.localize.feature_maps import refuse_unfit_network
from pipeline.models.localize.foreground import Foreground
from pipeline.models.localize.methods import METHODS, NO_BOX_HEAD
from pipeline.models.localize.views import ViewPlan, make_views, plan_views
from pipeline.models.networks.network import CamNetwork
from pipeline.models.weights.head_file import Head, read_head, refuse_other_backbone
from pipeline.models.weights.load_weights import Read, Weights, load_weights, model_digest
from pipeline.models.weights.state_fitting import load_network
from pipeline.storage.filesystems import read_url
from schemas.errors import ModelError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.box_rules import HEURISTIC_CLASSES
from schemas.options.network_names import file_name_of
from schemas.url_secrets import safe_url

GREATEST_SIDE_PX = 4096
"""Greatest side in pixels of the square input of the network; such an input takes 48 MiB."""


@dataclass(frozen=True)
class Model:
    """A network with its weights and its resize plan."""

    network: CamNetwork
    weights: Weights
    digest: str
    """Hash of the architecture, weights, preprocessing and resizing, which determine the network's results."""
    resize: ResizePlan
    head: Head | None = None
    """The head whose classes take the place of the network's own; ``network`` and ``weights.labels`` have them."""
    backbone: str | None = None
    """``digest`` without the head; None without a head."""
    foreground: Foreground | None = None
    """The figure/ground direction for the boxes; None without one."""

    @property
    def partition(self) -> str:
        """The value of the ``model`` partition of the output: the network's name and 8 digits of the digest."""
        return f"{file_name_of(self.network.name)}-{self.digest[:8]}"


def load_model(config: AnnotateConfig) -> Model:
    """Return the network of ``config``; raises ModelError, which fails the run, where the network can't be used.

    Raises UsageError for a head of another backbone.
    """
    read, exact_maps = functools.partial(read_url, storage=config), METHODS[config.method].exact
    weights = load_weights(
        config.model, config.weights, config.labels, read, key=config.weights_key, exact_maps=exact_maps
    )
    name = weights.architecture.name
    network = load_network(
        name, weights.state, config.image_size, preprocessing=weights.preprocessing, exact_maps=exact_maps
    )
    if config.method == "regress" and network.box_head is None:
        raise ModelError(NO_BOX_HEAD)
    if "feature_maps" in config.outputs:
        refuse_unfit_network(network)
    interpolation = network.preprocessing.interpolation
    if config.decode == "gpu" and interpolation != "bilinear":
        raise UsageError(f"--decode gpu: scales bilinearly; {name} expects {interpolation}: allowed: local, remote")
    views = _views(config, network)
    resize = ResizePlan(config.resize, views.side_px, views.canvas_hw, interpolation)
    digest = model_digest(name, weights.sha256, network.preprocessing, config.resize, weights.key)
    model = Model(network, weights, digest, resize)
    return _with_head(model, config, read) if config.head else model


def _with_head(model: Model, config: AnnotateConfig, read: Read) -> Model:
    """Return ``model`` with the classes of the head that ``config`` names in the place of its own."""
    assert config.head is not None
    head = read_head(config.head, read)
    this = f"this run has those of {model.partition}; allowed: a head of the same --weights, --image-size and --resize"
    refuse_other_backbone(head, model.digest, safe_url(config.head), this)
    return replace(
        model,
        network=model.network.with_linear_layer(torch.from_numpy(head.weight), torch.from_numpy(head.bias)).eval(),
        weights=replace(model.weights, labels=head.card.classes, multi_label=True),
        digest=head.partition_digest(model.digest),
        head=head,
        backbone=model.digest,
    )


def fit_topk(config: AnnotateConfig, network: CamNetwork) -> AnnotateConfig:
    """Return ``config`` with ``topk`` of at most the number of classes; raises UsageError where the user gave more."""
    if config.topk <= network.classes:
        return config
    allowed = f"allowed: up to the {network.classes} classes of {network.name}"
    if "topk" in config.model_fields_set:
        raise UsageError(f"--topk {config.topk}: {allowed}")
    if config.box_rule == "heuristic" and network.classes < HEURISTIC_CLASSES:
        raise UsageError(f"--box-rule heuristic: takes {HEURISTIC_CLASSES} classes; {allowed}")
    return config.model_copy(update={"topk": network.classes})


def _views(config: AnnotateConfig, network: CamNetwork) -> ViewPlan:
    """Return the views of each picture; raises ModelError for too small a side, UsageError for too large a side."""
    views = make_views(network.preprocessing.image_size, config.tta, config.scales)
    options = f"--scales {','.join(f'{scale:g}' for scale in config.scales)} --tta {config.tta}"
    try:
        plan = plan_views(views, functools.partial(METHODS[config.method].map_hw, network))
    except RuntimeError as error:
        least = min(view.side_px for view in views)
        raise ModelError(f"{options}: {least} pixels are too small for {network.name}; give larger scales") from error
    if plan.side_px > GREATEST_SIDE_PX:
        raise UsageError(f"{options}: inputs of {plan.side_px} pixels a side; allowed: up to {GREATEST_SIDE_PX}")
    return plan
