"""Which state fits which network: common files of others are understood, what contradicts is named."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save
from torch import Tensor

from pipeline.models.networks.demo_network import DEMO
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import ModelError
from tests.checkpoints import demo_state, labels_file


def read_either(weights: bytes, path: str) -> bytes:
    """Read the labels from their file and hand out ``weights`` for any other."""
    return weights if path.startswith("net.") else Path(path).read_bytes()


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without("features.1.bias"), "'features.1.bias' is missing"),
        (without("classifier.weight"), "'classifier.weight' is missing"),
        (lambda state: state | {"extra.weight": torch.zeros(1)}, "'extra.weight' is unexpected"),
        (lambda state: state | {"features.1.bias": torch.zeros(7)}, r"'features.1.bias' is \(7,\), expected \(24,\)"),
        (lambda state: {}, "'classifier.weight' is missing"),
    ],
)
def test_the_first_key_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], problem: str
) -> None:
    with pytest.raises(ModelError, match=f"^the weights don't fit {DEMO}: {problem}$"):
        load_weights(DEMO, "net.safetensors", labels_file(tmp_path), partial(read_either, save(change(demo_state()))))


def test_another_networks_weights_are_recognized() -> None:
    state = torchvision.models.squeezenet1_1().state_dict()
    with pytest.raises(ModelError, match=r"fit squeezenet1_0: .* expected .*; they fit squeezenet1_1$"):
        load_network("squeezenet1_0", state, None)


def test_batchnorm_counters_of_older_files_may_be_missing() -> None:
    state = {key: value for key, value in demo_state().items() if not key.endswith("num_batches_tracked")}
    assert load_network(DEMO, state, None).classes == 3


def test_names_of_old_densenet_files_are_understood() -> None:
    module = torchvision.models.densenet121()
    state = module.state_dict()
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in state.items()}
    assert old.keys() != state.keys()
    network = load_network("densenet121", old, 64)
    assert torch.equal(
        network.trunk[0].denseblock1.denselayer1.conv2.weight, state["features.denseblock1.denselayer1.conv2.weight"]
    )


def test_auxiliary_classifiers_of_googlenet_are_left_out() -> None:
    module = torchvision.models.googlenet(init_weights=False)
    assert any(key.startswith("aux1.") for key in module.state_dict())
    assert load_network("googlenet", module.state_dict(), 64).classes == 1000
