"""The input that a ``pretrained_cfg`` describes, a dict of timm's networks and files; the user's may have one."""

from collections.abc import Mapping
from typing import Any, get_args

from pipeline.models.networks.network import IMAGENET_INPUT, Preprocessing
from schemas.errors import ModelError
from schemas.options.network_names import Interpolation


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
    return Preprocessing(int(size[2]), mean, std, interpolation)


def _three(values: Any, who: str, key: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{who}: its {key} is {values!r}; allowed: three numbers") from error
    return red, green, blue
