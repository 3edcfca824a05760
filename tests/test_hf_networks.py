"""Image classifiers of transformers from folders: maps against their logits, names, inputs, refusals, a whole run."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers

from pipeline.models import registry
from pipeline.models.learn.conversion import build_network
from pipeline.models.learn.pretrained import load_pretrained
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.found.hf_networks import hf_entry
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.checkpoint import Card, checkpoint_bytes
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from pipeline.outputs import reader as camlake
from schemas.errors import ModelError
from schemas.options.network_names import reference_of
from tests.jobs_on import run_annotate
from tests.networks import logits_of_maps

LABELS = {0: "cat", 1: "dog", 2: "owl"}
STAGES = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
CONFIGS = {
    "ResNet": {"embedding_size": 8, "layer_type": "basic", **STAGES},
    "ConvNext": STAGES,
    "Swin": {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "RegNet": {"embedding_size": 8, "groups_width": 8, **STAGES},
    "EfficientNet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "MobileViT": {"image_size": 64, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [8] * 7, "num_attention_heads": 2},
    "ViT": {"image_size": 64, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
}
ABOUT = {
    "ResNet": "GAP, linear",
    "ConvNext": "GAP, layer normalization, linear",
    "Swin": "mean of the tokens, linear",
    "RegNet": "GAP, linear",
    "EfficientNet": "GAP, linear",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the function that saves a tiny classifier of a family as a user's training would, and its folder."""
    root = tmp_path_factory.mktemp("hf")

    def save(family, labels=LABELS):
        folder = root / f"{family}-{len(labels)}-{labels[0]}"
        if not folder.exists():
            torch.manual_seed(4)
            names = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
            config = getattr(transformers, f"{family}Config")(**CONFIGS[family], **names)
            network = transformers.AutoModelForImageClassification.from_config(config)
            for parameter in network.parameters():
                parameter.data.add_(0.05 * torch.randn_like(parameter))
            network.save_pretrained(folder)
            processor = {"size": {"shortest_edge": 64}, "image_std": [0.5, 0.25, 0.5]}
            kind = "ConvNextImageProcessor"
            if family == "EfficientNet":
                kind, processor["size"] = "EfficientNetImageProcessor", {"height": 64, "width": 64}
            if family == "MobileViT":
                kind, processor = "MobileViTImageProcessor", {"crop_size": {"height": 64, "width": 64}}
            getattr(transformers, kind)(**processor).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("family", ABOUT)
def test_maps_average_to_the_logits_of_transformers(family, saved):
    name = f"hf/{saved(family)}"
    assert registry.get(name, exact_maps=True).family.about == ABOUT[family]
    weights = load_weights(name, "DEFAULT", None)
    assert weights.labels == tuple(LABELS.values())
    network = load_network(name, weights.state, None, preprocessing=weights.preprocessing)
    original = transformers.AutoModelForImageClassification.from_pretrained(saved(family)).eval()
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(saved(family))
    inputs = processor(list(pixels.permute(0, 3, 1, 2)), return_tensors="pt", do_resize=False)
    with torch.no_grad():
        expected, features = original(**inputs).logits, network.features(pixels)
        assert torch.allclose(network.head(features).logits, expected, atol=1e-4)
        assert torch.allclose(logits_of_maps(network.head, features), expected, atol=1e-4)
        assert features.shape[1:] == (network.channels, *network.map_size(64))


def test_refusals_are_one_line(saved, tmp_path):
    with pytest.raises(ModelError, match=r"^hf/\S+ has no exact .* it pools by its class token, not by the mean over"):
        registry.get(f"hf/{saved('ViT')}", exact_maps=True)
    with pytest.raises(ModelError, match=r"^--model hf/\S+nowhere: transformers can't load it \(") as refused:
        registry.get(f"hf/{tmp_path}/nowhere")
    assert "\n" not in str(refused.value)
    odd = tmp_path / "odd"
    shutil.copytree(saved("RegNet"), odd)
    described = json.loads((odd / "preprocessor_config.json").read_text())
    for change, said in (
        (
            {"size": {"height": 64, "width": 32}, "do_center_crop": False},
            r"takes inputs of .*32.*; allowed: a square of",
        ),
        ({"image_mean": 0.5}, r": its preprocessor_config\.json can't be used: TypeError"),
        (
            {"image_std": [0.5, 0, 0.5]},
            r": its input can't be meant: Preprocessing\(image_size=64, .*; allowed: a whole",
        ),
        (
            {"image_processor_type": "PPLCNetImageProcessor"},
            r": PPLCNetImageProcessor does more to pixels than scaling",
        ),
    ):
        (odd / "preprocessor_config.json").write_text(json.dumps(described | change))
        with pytest.raises(ModelError, match=said):
            hf_entry.__wrapped__(f"hf/{odd}", reference_of(f"hf/{odd}"))
    with pytest.raises(ModelError, match=r"^hf/\S+ takes blue before red \(do_flip_channel_order\); allowed: RGB$"):
        registry.get(f"hf/{saved('MobileViT')}")
    backbone = tmp_path / "backbone"
    shutil.copytree(saved("ResNet"), backbone)
    transformers.AutoModel.from_pretrained(saved("ResNet")).save_pretrained(backbone)
    with pytest.raises(ModelError, match=r"^--model hf/\S+: its weights lack classifier\.1\.bias; `camlake train`"):
        load_weights(f"hf/{backbone}", "DEFAULT", None)
    with pytest.raises(ModelError, match=r"3 classes and no names for them: give one name a class with --labels"):
        load_weights(f"hf/{saved('RegNet', dict(enumerate(['LABEL_0', 'LABEL_1', 'LABEL_2'])))}", "DEFAULT", None)


def test_a_processor_that_does_not_normalize_is_followed(saved, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(saved("MobileViT"), plain)
    processor = transformers.MobileViTImageProcessor(do_flip_channel_order=False, size={"height": 64, "width": 64})
    assert "do_normalize" not in processor.to_dict()
    processor.save_pretrained(plain)
    found = hf_entry.__wrapped__(f"hf/{plain}", reference_of(f"hf/{plain}")).preprocessing
    assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folder_of_half_precision_is_float32_here(dtype, saved, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(saved("ResNet"), half)
    transformers.AutoModelForImageClassification.from_pretrained(half).to(dtype).save_pretrained(half)
    assert str(dtype).endswith(json.loads((half / "config.json").read_text())["dtype"])
    weights = load_weights(f"hf/{half}", "DEFAULT", None)
    network = load_network(f"hf/{half}", weights.state, None, preprocessing=weights.preprocessing)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_card_does_not_choose_what_transformers_loads(saved):
    name = f"hf/{saved('RegNet')}"
    weights = load_weights(name, "DEFAULT", None)
    card = Card(weights.architecture, weights.labels, weights.preprocessing)
    content = checkpoint_bytes(weights.state, card)
    assert load_weights(name, "net.safetensors", None, lambda _: content).architecture == card.architecture
    strangers = replace(card, architecture=replace(card.architecture, name="hf/any/repo"))
    content = checkpoint_bytes(weights.state, strangers)
    for model in (None, "resnet18"):
        with pytest.raises(ModelError, match=r"^net\.safetensors holds .* hf/any/repo, .*: give --model hf/any/repo$"):
            load_weights(model, "net.safetensors", None, lambda _: content)


def test_a_folder_of_weights_brings_its_own_input(saved, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(saved("ResNet"), other)
    place = other / "preprocessor_config.json"
    described = json.loads(place.read_text()) | {"size": {"shortest_edge": 96}, "image_mean": [0.1, 0.2, 0.3]}
    place.write_text(json.dumps(described))
    name = f"hf/{saved('ResNet')}"
    found = load_weights(name, str(other), None).preprocessing
    assert found == Preprocessing(96, (0.1, 0.2, 0.3), (0.5, 0.25, 0.5), "bicubic")
    del described["do_normalize"]
    for text, said in (
        (json.dumps(described), r"lacks do_normalize; allowed: true or false"),
        ("{", "can't be used: "),
    ):
        place.write_text(text)
        with pytest.raises(ModelError, match=rf"^--weights \S+: its preprocessor_config\.json {said}"):
            load_weights(name, str(other), None)
    place.unlink()
    assert load_weights(name, str(other), None).preprocessing == registry.get(name).preprocessing
    place.mkdir()
    with pytest.raises(ModelError, match=r"^--weights \S+: \S+preprocessor_config\.json can't be read: "):
        load_weights(name, str(other), None)


def test_a_classifier_annotates_and_the_lineage_names_transformers(saved, tmp_path):
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(1).integers(0, 256, (80, 70, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "in" / "1.png"), noise)
    manifest = run_annotate(tmp_path / "in", tmp_path / "out", model=f"hf/{saved('ResNet')}")
    assert manifest.lineage.packages["transformers"] == transformers.__version__
    assert manifest.lineage.preprocessing["interpolation"] == "bicubic"
    with camlake.open(str(tmp_path / "out")) as lake:
        assert {row["label"] for row in lake.arrow("heatmaps").to_pylist()} < set(LABELS.values())


def test_a_training_begins_with_its_layers_and_a_new_head(saved):
    folder = saved("RegNet")
    architecture = Architecture(f"hf/{folder}", classes=2)
    begun = load_pretrained(architecture)
    assert begun.new == ("classifier.1.weight", "classifier.1.bias")
    module = build_network(architecture, begun.state)
    network = registry.get(architecture.name).cam_network(architecture, module, begun.preprocessing)
    assert (network.classes, module.training) == (2, True)
    facts = {"transformers": transformers.__version__, "transformers_name": str(folder)}
    assert registry.origin_facts(architecture.name) == facts
