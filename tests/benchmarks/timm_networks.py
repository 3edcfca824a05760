"""Which of timm's networks have exact class activation maps, by their structure, with random weights.

Every name is built without values, which tells its kind: the module of timm that has it, its class, its pooling and the
layers behind. Of each kind the smallest network is built with random values, taken apart and compared with itself. All
names of a kind have its ending. A network of more than ``LARGE`` parameters is tried with fewer blocks.
"""

import json
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from jobs.benchmark.machine import Figures
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.models.networks.found.finding import find_structure
from pipeline.models.networks.found.identity import check_identity
from pipeline.models.networks.network import CamNetwork, Preprocessing
from schemas.errors import ModelError
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import option
from tests.benchmarks.command import benchmark

LARGE = 150_000_000
SIDE = 96
"""Side of the input that is tried first; networks that take one size alone are tried at their own."""
SHALLOW: tuple[dict[str, Any], ...] = ({"depth": 1}, {"depths": (1, 1, 1, 1)}, {})
ENDS = ("head", "fc", "classifier", "last_linear")
BEHIND = ("norm", "fc_norm", "norm_head", "conv_head", "attn_pool", "pre_logits", "head_dist", "final_conv", *ENDS)


class TimmConfig(MeasureConfig):
    """The configuration of this measurement."""

    kinds: str | None = option(None, "JSON file of the kinds of all names; written where it is missing", "Options")


def measure(config: TimmConfig, reporter: Reporter) -> Figures:
    """Return how many names are exact, refused and failed, and the ending of each kind."""
    warnings.simplefilter("ignore")
    names = _kinds(Path(config.kinds) if config.kinds else None, reporter)
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in names:
        kinds[json.dumps(one["kind"])].append(one)
    reporter.say(f"{len(names)} names of {len(kinds)} kinds")
    counts: Counter[str] = Counter()
    with_classes: Counter[str] = Counter()
    endings: dict[str, str] = {}
    for members in kinds.values():
        smallest = min(members, key=lambda one: one["parameters"])
        ending = _ending(smallest)
        reporter.say(f"{smallest['name']}: {ending}")
        word = ending.split(":")[0].split(" ")[0]
        counts[word] += len(members)
        with_classes[word] += sum(one["classes"] > 0 for one in members)
        endings[f"{smallest['kind'][0]}: {smallest['name']} ({len(members)} names)"] = ending
    classifiers = sum(one["classes"] > 0 for one in names)
    return {
        "timm": timm.__version__,
        "names": len(names),
        "kinds": len(kinds),
        **{f"names {word}": counts[word] for word in ("exact", "refused", "failed")},
        "share exact": counts["exact"] / len(names),
        "names with a classifier": classifiers,
        "share exact of these": with_classes["exact"] / classifiers,
        **dict(sorted(endings.items())),
    }


def _kinds(file: Path | None, reporter: Reporter) -> list[dict[str, Any]]:
    if file is not None and file.exists():
        found: list[dict[str, Any]] = json.loads(file.read_text())
        return found
    found = []
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                network = timm.create_model(name)
            found.append({"name": name, **_described(module, network)})
        reporter.say(f"{len(found)} names built without values")
    if file is not None:
        file.write_text(json.dumps(found))
    return found


def _described(module: str, network: nn.Module) -> dict[str, Any]:
    pooling = getattr(network, "global_pool", None)
    outer = [(name, type(layer).__name__) for name, layer in network.named_children() if name in BEHIND]
    inner = [type(layer).__name__ for name, layer in network.named_modules() if name.startswith(ENDS) and "." in name]
    prefix = getattr(network, "num_prefix_tokens", None) or 0
    pooled = pooling if isinstance(pooling, str) else type(pooling).__name__
    return {
        "kind": [module, type(network).__name__, pooled, prefix, outer, inner[:8]],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "classes": network.pretrained_cfg["num_classes"],
        "side": network.pretrained_cfg["input_size"][-1],
    }


def _ending(one: dict[str, Any]) -> str:
    own = one["side"]
    for side in (min(SIDE, own), own):
        try:
            return _tried(one, side)
        except ModelError as error:
            ending = f"refused: {error}"
        except Exception as error:
            ending = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    return ending


def _tried(one: dict[str, Any], side: int) -> str:
    module, shallow = _built(one)
    structure = find_structure(module, side)
    trunk, head = structure.cut(module)
    network = CamNetwork(one["name"], trunk, head, Preprocessing(side, (0.5,) * 3, (0.5,) * 3)).eval()
    if structure.refusal:
        raise ModelError(structure.refusal)
    check_identity(network, module, maps=True)
    graph = "" if structure.traces else ", not followed by torch.fx"
    return f"exact: {structure.about}, from {structure.layout.form} at {side} pixels{graph}{shallow}"


def _built(one: dict[str, Any]) -> tuple[nn.Module, str]:
    """Return the network with random values, and words for what it lacks."""
    if one["parameters"] <= LARGE:
        return timm.create_model(one["name"], num_classes=10), ""
    for options in SHALLOW[:-1]:
        try:
            return timm.create_model(one["name"], num_classes=10, **options), ", with fewer blocks"
        except TypeError:
            continue
    return timm.create_model(one["name"], num_classes=10), ""


command = benchmark(
    "timm_networks",
    "Try the smallest network of each kind of timm: exact maps, refused with a reason, or failed.",
    TimmConfig,
    measure,
    "--kinds kinds.json --result result.json",
)

if __name__ == "__main__":
    main(command)
