"""Weights in a folder of Hugging Face's layout, as timm's push_to_hf_hub and save_pretrained write it."""

import json

import pytest
import safetensors.torch
import torch

pytest.importorskip("timm")

import timm
from timm.models import save_for_hf

from pipeline.models import registry
from pipeline.models.weights.load_weights import load_weights
from schemas.errors import ModelError

NAME = "timm/test_resnet"
ONE = (
    "allowed: a .safetensors, .pt, .pth, .pth.tar, .ckpt or .bin file, or a folder/ with config.json and model.safetens"
)


def network(classes):
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=classes)


def test_a_folder_that_timm_wrote_brings_names_and_input(tmp_path):
    names = ["n1", "n2"]
    config = {"label_names": names, "label_descriptions": {"n1": "a cat", "n2": "a dog"}}
    model = network(2)
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "interpolation": "bicubic"}
    save_for_hf(model, tmp_path, model_config=config, safe_serialization=True)
    weights = load_weights(NAME, str(tmp_path), None)
    assert weights.labels == ("a cat", "a dog")
    assert (weights.preprocessing.image_size, weights.preprocessing.mean) == (160, (0.1, 0.2, 0.3))
    assert weights.preprocessing.interpolation == "bicubic"
    assert weights.source == f"{tmp_path}/model.safetensors"
    assert torch.equal(weights.state["fc.weight"], model.state_dict()["fc.weight"])


def test_a_torch_file_and_names_of_hugging_face(tmp_path):
    torch.save(network(2).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "dog", "0": "cat"}}))
    weights = load_weights(NAME, f"{tmp_path}/", None)
    assert weights.labels == ("cat", "dog")
    assert weights.preprocessing == registry.get(NAME).preprocessing


def test_a_thousand_classes_without_names_are_imagenets(tmp_path):
    safetensors.torch.save_file(network(1000).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(n): f"LABEL_{n}" for n in range(1000)}}))
    assert load_weights(NAME, str(tmp_path), None).labels[:2] == ("tench", "goldfish")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, ONE),
        ("[1", "its config.json can't be used: "),
        ("[1, 2]", "its config.json can't be used: "),
        ('{"pretrained_cfg": {"interpolation": "random"}}', "expects interpolation 'random'; allowed: nearest, bilin"),
        ('{"pretrained_cfg": {"mean": 0.5}}', "its mean is 0.5; allowed: three numbers"),
        (
            '{"pretrained_cfg": {"mean": [NaN, 0, 0]}}',
            "its input can't be meant: Preprocessing(image_size=224, mean=(nan",
        ),
        (
            '{"pretrained_cfg": {"std": [0.5, 0, 0.5]}}',
            "std=(0.5, 0.0, 0.5), interpolation='bilinear'); allowed: a whole",
        ),
        ('{"pretrained_cfg": {"input_size": [3, 0, 0]}}', "its input can't be meant: Preprocessing(image_size=0, "),
        ('{"pretrained_cfg": {"input_size": [3, "big", "big"]}}', "can't be meant: Preprocessing(image_size='big', "),
        ("{}", "model.safetensors and pytorch_model.bin can't be read there ("),
    ],
)
def test_folders_that_are_refused(config, said, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError) as refused:
        load_weights(NAME, str(tmp_path), None)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
