"""torchvision's own weights: downloaded once, with their labels and input; what a training starts from."""

import hashlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision

from pipeline.models import registry
from pipeline.models.learn.pretrained import load_pretrained
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.demo_network import DEMO
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.checkpoint import checkpoint_bytes
from pipeline.models.weights.load_weights import load_weights
from schemas.errors import ModelError
from tests.checkpoints import CARD, same, trained
from tests.networks import without_values


def test_cam_forms_have_no_trained_weights_to_download() -> None:
    with pytest.raises(
        ModelError, match=r"^--weights DEFAULT: there are no trained ones of vgg16_gap; `camlake train` "
    ):
        load_weights("vgg16_gap", "DEFAULT", None)
    with pytest.raises(
        ModelError,
        match=r"^--weights DEFAULT: torchvision has none for vgg16c_gap; allowed: --weights none, or a file$",
    ):
        load_pretrained(Architecture("vgg16c_gap"))
    with pytest.raises(ModelError, match=r"^--weights 'V2' of alexnet: allowed: DEFAULT, IMAGENET1K_V1, or a "):
        load_pretrained(Architecture("alexnet_gap"), "V2")


def test_training_goes_on_from_a_checkpoint_or_the_demos_weights() -> None:
    state = trained()
    content = checkpoint_bytes(state, CARD)
    found = load_pretrained(Architecture("vgg16_gap", width=0.125, classes=9), "a.safetensors", lambda _: content)
    assert found.new == ("classifier.gap.weight", "classifier.gap.bias")
    assert torch.equal(found.state["features.0.weight"], state["features.0.weight"])
    assert (found.source, found.preprocessing) == ("a.safetensors", CARD.preprocessing)
    assert load_pretrained(Architecture(DEMO, classes=4)).new == ("classifier.weight", "classifier.bias")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return torch's download folder, an empty one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub" / "checkpoints"


def test_official_weights_come_from_torchs_cache_with_their_labels(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.squeezenet1_1().state_dict()
    asked = []

    def download(url: str, dst: str, hash_prefix: str | None, progress: bool) -> None:
        asked.append((url, hash_prefix))
        torch.save(state, dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first = load_weights("squeezenet1_1", "DEFAULT", None)
    again = load_weights("squeezenet1_1", "IMAGENET1K_V1", None)
    assert asked == [("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]
    assert first.source == again.source == "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert first.sha256 == hashlib.sha256((hub / "squeezenet1_1-b8a52dc0.pth").read_bytes()).hexdigest()
    assert first.labels[0] == "tench"
    assert same(first.state, state)


def test_training_starts_from_torchvisions_convolutions(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = without_values(Architecture("googlenet")).state_dict()
    zeros = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, dst, *_, **__: torch.save(zeros, dst))
    found = load_pretrained(Architecture("googlenet_gap", classes=3))
    assert found.source == "GoogLeNet_Weights.IMAGENET1K_V1"
    assert found.preprocessing == registry.get("googlenet").preprocessing
    assert found.new[0] == "features.cam_conv.weight"
    assert not found.state["features.inception4e.branch1.conv.weight"].any()
    assert found.state["features.cam_conv.weight"].any()


def test_a_failed_download_is_one_line_that_says_what_to_do(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **options: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ModelError, match=r"resnet18-f37072fd\.pth .*no route.*; .* give the file with --weights$"):
        load_weights("resnet18", "DEFAULT", None)


def test_the_size_of_the_input_is_that_of_the_weights_asked_for() -> None:
    entry = registry.get("regnet_y_16gf")
    assert entry.official_weights["IMAGENET1K_SWAG_E2E_V1"].preprocessing.image_size == 384
    assert entry.preprocessing.image_size == 224
    assert registry.get("efficientnet_v2_l").preprocessing == Preprocessing(480, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
