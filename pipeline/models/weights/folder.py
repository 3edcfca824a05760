"""A folder of weights in Hugging Face's layout: a config.json, and model.safetensors or pytorch_model.bin beside it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.models.networks.found.input_facts import preprocessing_of, processor_input
from pipeline.models.networks.network import Preprocessing
from schemas.errors import InputError, ModelError
from schemas.label_text import labels_in_config, parse_json
from schemas.url_secrets import safe_url

_FILES = ("model.safetensors", "pytorch_model.bin")
FOLDER = f"a folder/ with config.json and {' or '.join(_FILES)}"


class WeightsFolder(NamedTuple):
    """What a folder says of its weights."""

    file: str
    """URL of the weights file."""
    content: bytes
    """That file's bytes."""
    labels: tuple[str, ...] | None
    """Names of the classes; None where the folder has none, or only Hugging Face's LABEL_0, LABEL_1, ..."""
    preprocessing: Preprocessing | None
    """The input that config.json describes, as timm writes it, or else the preprocessor_config.json beside it.

    None where there is neither.
    """


def read_folder(url: str, read: Callable[[str], bytes], allowed: str) -> WeightsFolder:
    """Return the weights in the folder at ``url``; ``read`` returns the bytes of the file at a URL.

    Raises ModelError, which says what is ``allowed``, where there is no config.json, where it or a
    preprocessor_config.json beside it can't be used, and where there are no weights beside it.
    """
    folder, shown = url.rstrip("/"), safe_url(url)
    try:
        text = read(f"{folder}/config.json")
    except (InputError, ModelError) as error:
        raise ModelError(f"--weights {shown}: allowed: {allowed} ({error})") from error
    try:
        config: dict[str, Any] = dict(parse_json(text))
        labels = labels_in_config(config)
    except (ValueError, TypeError) as error:
        raise ModelError(f"--weights {shown}: its config.json can't be used: {error}") from error
    cfg = config.get("pretrained_cfg")
    who = f"--weights {shown}"
    preprocessing = _beside(folder, read, who) if cfg is None else preprocessing_of(cfg, who)
    for name in _FILES:
        try:
            return WeightsFolder(f"{folder}/{name}", read(f"{folder}/{name}"), labels, preprocessing)
        except (InputError, ModelError) as error:
            missing = error
    raise ModelError(f"--weights {shown}: {' and '.join(_FILES)} can't be read there ({missing})") from missing


def _beside(folder: str, read: Callable[[str], bytes], who: str) -> Preprocessing | None:
    """Return the input that the folder's preprocessor_config.json describes; None where there is no such file."""
    try:
        given = parse_json(read(f"{folder}/preprocessor_config.json"))
    except (InputError, ModelError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise ModelError(f"{who}: {error}") from error
    except ValueError as error:
        raise ModelError(f"{who}: its preprocessor_config.json can't be used: {error}") from error
    # Where one of these is missing, the class of transformers that wrote the file decides.
    silent = [key for key in ("do_rescale", "do_normalize") if isinstance(given, dict) and key not in given]
    if silent:
        raise ModelError(f"{who}: its preprocessor_config.json lacks {silent[0]}; allowed: true or false")
    return processor_input(given, who)
