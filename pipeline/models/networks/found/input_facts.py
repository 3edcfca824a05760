"""The input of a network as others describe it.

timm's networks and files have a dict ``pretrained_cfg``, and the user's may have one; beside the weights that
transformers writes lies a preprocessor_config.json.
"""

from collections.abc import Mapping
from typing import Any, get_args

from pipeline.models.networks.network import IMAGENET_INPUT, Preprocessing
from schemas.errors import ModelError
from schemas.options.network_names import Interpolation

_BY_PILLOW: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which stand in a preprocessor_config.json."""


def preprocessing_of(given: Any, who: str) -> Preprocessing:
    """Return size, mean, deviation and interpolation of ``given``; what it leaves out is as for ImageNet.

    A crop in it is left out: camlake's boxes lie in the whole picture, so that it looks at the whole picture. Raises
    ModelError, which begins with ``who``, for facts that can't be meant and for inputs that camlake can't make.
    """
    if not isinstance(given, Mapping):
        raise ModelError(f"{who}: its pretrained_cfg is a {type(given).__name__}; allowed: a dict")
    side = IMAGENET_INPUT.image_size
    size, interpolation = given.get("input_size", (3, side, side)), given.get("interpolation", "bilinear")
    if not isinstance(size, tuple | list) or len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        raise ModelError(f"{who} takes inputs of {size}; allowed: three colours and a square, such as (3, 224, 224)")
    if interpolation not in get_args(Interpolation):
        raise ModelError(
            f"{who} expects interpolation {interpolation!r}; allowed: {', '.join(get_args(Interpolation))}"
        )
    mean, std = (_three(given.get(key, getattr(IMAGENET_INPUT, key)), who, key) for key in ("mean", "std"))
    return _checked(Preprocessing(size[2], mean, std, interpolation), who)


def processor_input(given: Any, who: str) -> Preprocessing:
    """Return the input that ``given`` describes, the content of a preprocessor_config.json; its crop is left out.

    What ``given`` does not say to be done is not done. Raises ModelError as ``preprocessing_of`` does.
    """
    try:
        preprocessing = _processor_input(given, who)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{who}: its preprocessor_config.json can't be used: {error!r}") from error
    return _checked(preprocessing, who)


def _processor_input(given: dict[str, Any], who: str) -> Preprocessing:
    size = (given.get("crop_size") if given.get("do_center_crop") else None) or given["size"]
    height, width = (size.get(side, size.get("shortest_edge")) for side in ("height", "width"))
    if height is None or height != width or given.get("rescale_offset"):
        raise ModelError(f"{who} takes inputs of {size}; allowed: a square of values from 0")
    if given.get("do_flip_channel_order"):
        raise ModelError(f"{who} takes blue before red (do_flip_channel_order); allowed: RGB")
    factor = 255 * given["rescale_factor"] if given.get("do_rescale") else 255.0
    mean, std = (given["image_mean"], given["image_std"]) if given.get("do_normalize") else ([0] * 3, [1] * 3)
    again = std if given.get("include_top") else [1.0] * 3  # EfficientNet's are divided by the deviation twice.
    red, green, blue = (float(value) / factor for value in mean)
    stds = tuple(float(value) * float(second) / factor for value, second in zip(std, again, strict=True))
    return Preprocessing(height, (red, green, blue), (stds[0], stds[1], stds[2]), _BY_PILLOW[int(given["resample"])])


def _checked(preprocessing: Preprocessing, who: str) -> Preprocessing:
    if not preprocessing.can_be_meant:
        raise ModelError(
            f"{who}: its input can't be meant: {preprocessing}; allowed: a whole side, finite numbers, std above 0"
        )
    return preprocessing


def _three(values: Any, who: str, key: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{who}: its {key} is {values!r}; allowed: three numbers") from error
    return red, green, blue
