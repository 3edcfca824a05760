"""Class names in the forms in which libraries write them, and networks with one logit."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.runtime import Runtime
from pipeline.models.networks.demo_network import DEMO
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import ModelError
from tests.checkpoints import demo_state, loaded, saved

RAW = demo_state()

NAMES = ("tench", "goldfish", "great_white_shark")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({str(n): [f"n0{n}", name] for n, name in enumerate(NAMES)}, id="Keras"),
        pytest.param({"id2label": {str(n): name for n, name in enumerate(NAMES)}, "hidden": 3}, id="Hugging Face"),
        pytest.param({"label2id": {name: n for n, name in enumerate(NAMES)}, "hidden": 3}, id="label2id"),
        pytest.param({str(n): name for n, name in enumerate(NAMES)}, id="number to name"),
        pytest.param({str(n): NAMES[n] for n in (2, 0, 1)}, id="in another order"),
        pytest.param({name: n for n, name in enumerate(NAMES)}, id="class_to_idx of an ImageFolder"),
        pytest.param({"class_to_idx": {name: n for n, name in enumerate(NAMES)}}, id="class_to_idx in a dict"),
        pytest.param({"classes": list(NAMES)}, id="a list in a dict"),
        pytest.param(list(NAMES), id="a list"),
    ],
)
def test_class_names_of_libraries(content: Any) -> None:
    assert loaded(saved(RAW), labels=json.dumps(content).encode()).labels == NAMES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"0": "a", "2": "b", "3": "c"}', "a JSON object of 3 names without the number 1"),
        (b'{"a": 0, "b": 0, "c": 1}', "a JSON object of 3 names without the number 2"),
        (b'{"0": "a", "1": 7, "2": "c"}', "--labels labels: "),
        (b'{"id2label": {"0": "a", "1": "b"}}', "2 labels for the 3 classes"),
        (b'{"0": "a"', "--labels labels: "),
        (b"{}", "no name"),
    ],
)
def test_class_names_that_are_none_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        loaded(saved(RAW), labels=content)


@pytest.mark.parametrize(("labels", "name"), [(b"cat\n", "cat"), (b"no cat\ncat\n", "cat"), (b'["-", "+"]', "+")])
def test_one_logit_is_a_sigmoid(labels: bytes, name: str) -> None:
    found = loaded(saved({"state_dict": demo_state(1)}), labels=labels)
    assert found.multi_label
    assert found.labels == (name,)
    assert not loaded(saved(RAW)).multi_label


def test_the_probability_of_one_logit_is_its_sigmoid() -> None:
    weights = loaded(saved({"state_dict": demo_state(1)}), labels=b"cat")
    network = load_network(DEMO, weights.state, None)
    pixels = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    rule = CamRule(1, BoxRule("all-components", (0.2,), 0.0))
    localizer = Localizer(network, rule, Runtime("cpu", "fp32", False, 1, 2), multi_label=weights.multi_label)
    found = localizer(pixels, [(112, 112)] * 2, [(14, 14)] * 2)
    expected = network(pixels).logits[:, 0].sigmoid().numpy()
    np.testing.assert_allclose(found.maps.class_prob, expected, rtol=1e-5)
    assert expected.max() < 1


def test_one_logit_needs_a_name() -> None:
    with pytest.raises(ModelError, match="has 1 classes and no names for them"):
        load_weights(DEMO, "net.pth", None, lambda _: saved(demo_state(1)))
    with pytest.raises(ModelError, match="3 labels for the 1 classes"):
        loaded(saved(demo_state(1)))
