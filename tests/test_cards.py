"""A checkpoint's card: all that its weights need, and refused where it contradicts them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipeline.models.learn.conversion import build_network
from pipeline.models.networks.architecture import Architecture
from pipeline.models.weights.checkpoint import CARD_KEY, checkpoint_bytes
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import ModelError
from tests.checkpoints import CARD, LABELS, demo_state, labels_file, same, trained


def test_the_card_is_all_that_a_checkpoint_needs() -> None:
    state = trained()
    content = checkpoint_bytes(state, CARD)
    for model in (None, "vgg16_gap"):
        weights = load_weights(model, "s3://nets/best.safetensors", None, lambda _: content)
        assert same(weights.state, state)
        assert weights.architecture == CARD.architecture
        assert weights.labels == LABELS
        assert weights.preprocessing == CARD.preprocessing
        assert weights.multi_label
    network = load_network(weights.architecture.name, weights.state, None, preprocessing=weights.preprocessing)
    assert network.preprocessing == CARD.preprocessing
    assert network.head.pooling == "gmp"
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    module = build_network(CARD.architecture, state).eval()
    mean, std = torch.tensor(CARD.preprocessing.mean), torch.tensor(CARD.preprocessing.std)
    with torch.inference_mode():
        expected = module(((images / 255 - mean) / std).permute(0, 3, 1, 2))
        torch.testing.assert_close(network(images).logits, expected)


def test_labels_of_the_user_and_another_size_win_over_the_card(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(checkpoint_bytes(trained(), replace(CARD, labels=("x", "y", "z"))))
    weights = load_weights(None, str(path), labels_file(tmp_path))
    assert weights.labels == LABELS
    network = load_network("vgg16_gap", weights.state, 96, preprocessing=weights.preprocessing)
    assert network.preprocessing == replace(CARD.preprocessing, image_size=96)


def test_the_card_can_be_read_beside_its_weights() -> None:
    assert json.loads(CARD.json()) == {
        "architecture": {"name": "vgg16_gap", "pooling": "gmp", "width": 0.125, "classes": 3},
        "labels": list(LABELS),
        "preprocessing": {
            "image_size": 64,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.1],
            "interpolation": "bilinear",
        },
        "multi_label": True,
        "supervision": "labels",
        "facts": {"data": "ab12", "metrics": {"top1": 0.75}},
    }


def test_a_card_has_a_label_for_each_class() -> None:
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        checkpoint_bytes(trained(), replace(CARD, labels=LABELS[:2]))


def test_a_card_that_contradicts_is_refused() -> None:
    content = checkpoint_bytes(trained(), CARD)
    with pytest.raises(ModelError, match=r"^--model vgg13_gap: net.safetensors holds vgg16_gap, as its card says; "):
        load_weights("vgg13_gap", "net.safetensors", None, lambda _: content)
    other = checkpoint_bytes(trained(), replace(CARD, architecture=Architecture("vgg16_gap", "gap", 0.125, 3)))
    message = (
        r"^net.safetensors holds vgg16_gap \(gmp, .*\), but its card says vgg16_gap \(gap, width 0.125, 3 classes\)$"
    )
    with pytest.raises(ModelError, match=message):
        load_weights(None, "net.safetensors", None, lambda _: other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: "{", "the card of net.safetensors can't be read: : Invalid JSON"),
        (
            lambda card: card.replace('"classes":3', '"classes":"x"'),
            "can't be read: architecture.classes: Input should",
        ),
        (lambda card: card.replace('"labels":', '"names":'), "can't be read: labels: Field required"),
        (lambda card: card.replace("vgg16_gap", "vgg16_gsp"), "unknown network 'vgg16_gsp'; did you mean 'vgg16_gap'?"),
        (lambda card: card.replace('"image_size":64', '"image_size":0'), "a preprocessing that can't be meant"),
        (lambda card: card.replace("[0.2,0.2,0.1]", "[0.2,0,0.1]"), "a preprocessing that can't be meant"),
    ],
)
def test_a_broken_card_is_one_line(change: Callable[[str], str], message: str) -> None:
    card = json.dumps(json.loads(CARD.json()), separators=(",", ":"))
    content = save(trained(), metadata={CARD_KEY: change(card)})
    with pytest.raises(ModelError) as refusal:
        load_weights(None, "net.safetensors", None, lambda _: content)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_without_card_needs_the_name_of_its_network(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^net.safetensors has no card that names its network: name it with --model$"):
        load_weights(None, "net.safetensors", labels_file(tmp_path), lambda _: save(demo_state()))
