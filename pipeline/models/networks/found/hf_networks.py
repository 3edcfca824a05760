"""The image classifiers of Hugging Face's transformers: a folder that ``save_pretrained`` wrote, or a name on the hub.

transformers is an optional extra and is imported only when it is asked for. No code of a folder is run.
"""

import importlib
import importlib.util
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.entry import NetworkEntry, PublishedWeights
from pipeline.models.networks.found.found_entry import found_entry
from pipeline.models.networks.found.input_facts import processor_input
from pipeline.models.networks.network import Normalization, Preprocessing
from schemas.errors import ModelError
from schemas.label_text import labels_in_config
from schemas.options.network_names import Reference


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
    processor = _loaded("AutoImageProcessor", place)
    preprocessing = processor_input(processor.to_dict(), name)
    _check_processor(name, processor, preprocessing)
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
        return ImageClassifier(_transformers().AutoModelForImageClassification.from_config(config, dtype=torch.float32))
    except ValueError as error:
        raise ModelError(f"--model hf/{place}: {config.model_type} is no image classifier of transformers") from error


def _state(place: str) -> dict[str, Tensor]:
    network, about = _loaded("AutoModelForImageClassification", place, output_loading_info=True)
    if missing := sorted(about["missing_keys"]):  # transformers would go on with random values.
        raise ModelError(f"--model hf/{place}: its weights lack {missing[0]}; `camlake train` makes a whole classifier")
    state: dict[str, Tensor] = network.state_dict()
    return state


def _check_processor(name: str, processor: Any, preprocessing: Preprocessing) -> None:
    """Raise ModelError where ``processor`` makes other inputs of pixels than ``preprocessing`` says, such as BGR."""
    side = preprocessing.image_size
    pixels = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    images, expected = list(pixels.permute(0, 3, 1, 2)), Normalization(preprocessing)(pixels)
    try:
        made = processor(images, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name}: {type(processor).__name__} can't be used: {error!r}") from error
    if made.shape != expected.shape or not torch.allclose(made, expected, atol=1e-3):
        raise ModelError(f"{name}: {type(processor).__name__} does more to pixels than scaling by mean and deviation")
