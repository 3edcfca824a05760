"""State dicts, labels and a card for the tests of weights."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.models.learn.conversion import build_network
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.demo_network import DEMO, DemoNetwork
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.checkpoint import Card
from pipeline.models.weights.load_weights import Weights, load_weights

LABELS = ("ant", "bee", "<b>wasp</b>")


def demo_state(classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return DemoNetwork(classes).state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def labels_file(folder: Path) -> str:
    """Write LABELS, one label a line, and return the file's path."""
    path = folder / "labels.txt"
    path.write_text("ant\nbee\n<b>wasp</b>\n", encoding="utf-8")
    return str(path)


CARD = Card(
    Architecture("vgg16_gap", "gmp", 0.125, 3),
    LABELS,
    Preprocessing(64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
    multi_label=True,
    facts={"data": "ab12", "metrics": {"top1": 0.75}},
)


def trained() -> dict[str, Tensor]:
    torch.manual_seed(8)
    return build_network(CARD.architecture).state_dict()


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def loaded(content: bytes, name: str = "net.pth", labels: bytes = b'["ant", "bee", "wasp"]', **options: Any) -> Weights:
    return load_weights(DEMO, name, "labels", lambda url: labels if url == "labels" else content, **options)
