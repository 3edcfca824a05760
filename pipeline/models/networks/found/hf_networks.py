"""The image classifiers of Hugging Face's transformers: a folder that ``save_pretrained`` wrote, or a name on the hub.

transformers is an optional extra and is imported only when it is asked for. No code of a folder is run.
"""

import importlib
import importlib.util
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.entry import NetworkEntry, PublishedWeights
from pipeline.models.networks.found.entries import found_entry
from pipeline.models.networks.network import Preprocessing
from schemas.errors import ModelError
from schemas.label_text import labels_in_config
from schemas.options.network_names import Interpolation, Reference

_BY_PILLOW: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which stand in a preprocessor_config.json."""


class ImageClassifier(nn.Module):
    """A classifier of transformers with tensors as results and the methods by which timm's networks are cut.

    Its layers have transformers' own names.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        self.__dict__["network"] = network  # Not a child: its layers are ours already, under their own names.

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) of normalized images (B, 3, H, W)."""
        logits: Tensor = self.__dict__["network"](pixel_values=images).logits
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last features in front of the pooling."""
        features: Tensor = self.get_submodule(self.__dict__["network"].base_model_prefix)(images).last_hidden_state
        return features

    def get_classifier(self) -> nn.Module | None:
        """Return the last layer; None where the network has none of that name."""
        return getattr(self, "classifier", None)


@cache
def hf_entry(name: str, reference: Reference) -> NetworkEntry:
    """Return the entry of a classifier of transformers, by building it; ``name`` is its whole name.

    Raises ModelError where transformers is not installed, where there is no such folder or name, and where the network
    can't be cut.
    """
    place = reference.hf
    assert place is not None
    config = _loaded("AutoConfig", place)
    given = _loaded("AutoImageProcessor", place).to_dict()
    try:
        preprocessing = _preprocessing(name, given)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"{name}: its preprocessor_config.json can't be used: {error!r}") from error
    labels = labels_in_config({"id2label": config.id2label})
    weights = PublishedWeights(name, place, preprocessing, labels, load=partial(_state, place))
    return found_entry(
        name,
        _construct(place, Architecture(name, classes=config.num_labels)),
        partial(_construct, place),
        preprocessing,
        lambda: {"DEFAULT": weights},
        reference.layers,
    )


def _loaded(kind: str, place: str, **options: Any) -> Any:
    """Return what the class ``kind`` of transformers makes of a folder or name."""
    try:
        return getattr(_transformers(), kind).from_pretrained(place, trust_remote_code=False, **options)
    except (OSError, ValueError, LookupError, RuntimeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"--model hf/{place}: transformers can't load it ({reason})") from error


def _transformers() -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise ModelError("--model hf/FOLDER-OR-NAME: transformers is not installed; `pip install 'camlake[hf]'`")
    transformers: Any = importlib.import_module("transformers")  # An optional extra; nobody else should wait for it.
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _construct(place: str, architecture: Architecture) -> nn.Module:
    config = _loaded("AutoConfig", place)
    if config.num_labels != architecture.classes:
        config.num_labels = architecture.classes
    try:
        return ImageClassifier(_transformers().AutoModelForImageClassification.from_config(config))
    except ValueError as error:
        raise ModelError(f"--model hf/{place}: {config.model_type} is no image classifier of transformers") from error


def _state(place: str) -> dict[str, Tensor]:
    network, about = _loaded("AutoModelForImageClassification", place, output_loading_info=True)
    if missing := sorted(about["missing_keys"]):  # transformers would go on with random values.
        raise ModelError(f"--model hf/{place}: its weights lack {missing[0]}; `camlake train` makes a whole classifier")
    state: dict[str, Tensor] = network.state_dict()
    return state


def _preprocessing(name: str, given: dict[str, Any]) -> Preprocessing:
    """Return the input that a preprocessor_config.json describes; its crop is left out."""
    size = (given.get("crop_size") if given.get("do_center_crop") else None) or given["size"]
    height, width = (size.get(side, size.get("shortest_edge")) for side in ("height", "width"))
    if height is None or height != width or given.get("rescale_offset"):
        raise ModelError(f"{name} takes inputs of {size}; allowed: a square of values from 0")
    factor = 255 * given["rescale_factor"] if given.get("do_rescale", True) else 255.0
    normalizes = given.get("do_normalize", True)
    mean, std = (
        (given[key] if normalizes else plain) for key, plain in (("image_mean", [0] * 3), ("image_std", [1] * 3))
    )
    again = std if given.get("include_top") else [1.0] * 3  # EfficientNet's are divided by the deviation twice.
    red, green, blue = (float(value) / factor for value in mean)
    stds = tuple(float(value) * float(second) / factor for value, second in zip(std, again, strict=True))
    return Preprocessing(
        int(height), (red, green, blue), (stds[0], stds[1], stds[2]), _BY_PILLOW[int(given["resample"])]
    )
