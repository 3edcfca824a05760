"""Networks of the user's own code: found by their structure, refused in one line, annotated and trained."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import jobs.train
from pipeline.annotate.model import load_model
from pipeline.graph.train import training
from pipeline.models import registry
from pipeline.models.learn.conversion import build_network
from pipeline.models.localize.stride16 import find_stride16
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.found.found_heads import AffineHead, OpaqueHead
from pipeline.models.networks.heads import LinearHead, NormedHead
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.checkpoint import Card, checkpoint_bytes
from pipeline.models.weights.load_weights import load_weights, model_digest
from pipeline.models.weights.state_fitting import load_network
from pipeline.outputs import reader as camlake
from schemas.errors import ModelError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.network_names import file_name_of, reference_of
from tests import their_networks
from tests.jobs_on import run_annotate
from tests.networks import images, logits_of_maps
from tests.test_readme import block

OWN = "tests.their_networks:"
CUT = f"{OWN}branching[body,fc]"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        (f"{OWN}plain", LinearHead),
        (CUT, LinearHead),
        (f"{OWN}channels_last", NormedHead),
        (f"{OWN}affine", AffineHead),
    ],
)
def test_maps_of_the_users_network_average_to_its_own_logits(name, head):
    entry = registry.get(name, exact_maps=True)
    network = load_network(name, entry.published["DEFAULT"].load(), None)
    original = getattr(their_networks, name.split(":")[1].split("[")[0])().eval()
    pixels = images(32)
    with torch.no_grad():
        features = network.trunk(pixels)
        expected = original(pixels)
        assert features.shape == (2, 6, 16, 16) == (2, network.channels, *network.map_size(32))
        assert torch.allclose(network.head(features).logits, expected, atol=1e-5)
        assert torch.allclose(logits_of_maps(network.head, features), expected, atol=1e-5)
    assert type(network.head) is head
    assert network.preprocessing.image_size == 32
    assert network.preprocessing.std == (0.25,) * 3


def test_an_affine_heads_weights_follow_a_training():
    module = their_networks.affine().eval()
    entry = registry.get(f"{OWN}affine")
    head = entry.cam_network(entry.default_architecture, module, entry.preprocessing).head
    before = head.linear.weight.clone()
    with torch.no_grad():
        module.other.weight.add_(1)
    scale = (module.norm.weight / (module.norm.running_var + module.norm.eps).sqrt()).detach()
    assert torch.allclose(head.linear.weight - before, scale.expand(3, 6) / 2, atol=1e-5)


REFUSALS = {
    f"{OWN}hidden": "layers that are not affine stand behind the average (Tanh); give --method layercam",
    f"{OWN}greatest": "layers stand between its last maps and the average (functions",
    f"{OWN}flattened": "fc takes the values of all positions, not their mean; give --method layercam, or use timm/",
    "tests.their_networks": "unknown network 'tests.their_networks'; `camlake models` lists all; others are timm/NAME,",
    f"{OWN}branching": "torch.fx can't follow its forward pass (",
    f"{OWN}branching[fc,fc]": "its last features, at fc, are (2, 3): no maps",
    f"{OWN}branching[body.0,fc]": "body.0 gives 8 maps, but fc takes 6 values: name the layer whose maps are averaged",
    f"{OWN}branching[body.3,fc]": "fc of the averages of body.3 differs from the network's logits by up to",
    f"{OWN}branching[trunk,fc]": "--feature-layer trunk: the network has no such layer; its outermost are body",
    f"{OWN}branching[body,pool]": "--classifier-layer pool: is a AdaptiveAvgPool2d; allowed: a Linear or a 1×1 Conv2d",
    f"{OWN}no_network": "returns a dict; allowed: a torch.nn.Module",
    f"{OWN}with_argument": "its function needs to be called without arguments (missing a required argument: 'path')",
    f"{OWN}oblong": "takes inputs of (3, 32, 48); allowed: three colours and a square, such as (3, 224, 224)",
    f"{OWN}nothing": "tests.their_networks has no function 'nothing'",
    "no_such_package.nets:plain": "no_such_package.nets can't be imported (No module named 'no_such_package')",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_network_without_exact_maps_is_refused_in_one_line(name):
    with pytest.raises(ModelError) as refused:
        registry.get(name, exact_maps=True)
    assert REFUSALS[name] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_with_other_layers_behind_its_maps_classifies_for_the_other_methods():
    network = load_network(f"{OWN}hidden", their_networks.hidden().state_dict(), None, exact_maps=False)
    pixels = images(32)
    assert isinstance(network.head, OpaqueHead)
    expected = their_networks.hidden().eval()(pixels)
    assert torch.allclose(network.head(network.trunk(pixels)).logits, expected, atol=1e-5)


def test_a_network_that_differs_from_its_parts_is_refused_with_the_difference(monkeypatch):
    entry = registry.get(CUT)
    monkeypatch.setattr(their_networks.Branching, "forward", lambda self, x: self.fc(self.body(x).amax((2, 3))))
    with pytest.raises(ModelError, match=r"differ from the logit by up to [\d.]+, where logits reach [\d.]+; name its"):
        load_network(CUT, entry.published["DEFAULT"].load(), None)


def test_one_option_without_the_other_and_a_known_network_are_refused():
    both = {"feature_layer": "body", "classifier_layer": "fc"}
    job = {"input": "in", "out": "out"}
    assert AnnotateConfig.resolve({**job, "model": f"{OWN}branching", **both}).model == CUT
    with pytest.raises(UsageError, match=r"^--classifier-layer fc: allowed: together with --feature-layer$"):
        AnnotateConfig.resolve({**job, "model": f"{OWN}branching", "classifier_layer": "fc"})
    with pytest.raises(
        UsageError, match=r"^--feature-layer body: allowed: with --model timm/NAME, hf/NAME or package\.m"
    ):
        AnnotateConfig.resolve({**job, "model": "resnet18", **both})


def test_a_network_that_is_returned_again_and_again_keeps_its_values():
    before = {name: value.clone() for name, value in their_networks.kept().state_dict().items()}
    given = registry.get(f"{OWN}kept").published["DEFAULT"].load()
    for name, value in before.items():
        assert torch.equal(given[name], value), name
        assert torch.equal(their_networks.kept().state_dict()[name], value), name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("failing", r"^--model \S+:failing: its function fails: KeyError: 'nothing'$"),
        (
            "narrow",
            r"^--model \S+:narrow: fails at random inputs of 32×32 pixels: TypeError: 100 pixels, not others$",
        ),
    ],
)
def test_whatever_the_users_code_raises_is_one_line(name, said):
    with pytest.raises(ModelError, match=said):
        registry.get(f"{OWN}{name}")


def test_names_of_networks_and_of_their_folders():
    assert reference_of("timm/resnet50.a1_in1k").timm == "resnet50.a1_in1k"
    assert reference_of(CUT).layers == ("body", "fc")
    assert reference_of("s3://bucket/model") is reference_of("resnet50") is reference_of("os:system('x')") is None
    assert file_name_of(CUT) == "tests.their_networks-branching-body-fc"


def test_a_weights_file_chooses_no_code_to_run(tmp_path):
    architecture = Architecture(f"{OWN}plain", classes=2)
    preprocessing = registry.get(f"{OWN}plain").preprocessing
    state = build_network(architecture).state_dict()
    path = tmp_path / "own.safetensors"
    path.write_bytes(checkpoint_bytes(state, Card(architecture, ("no", "yes"), preprocessing)))
    with pytest.raises(ModelError, match=r"which is your code to run: give --model tests\.their_networks:plain$"):
        load_weights(None, str(path), None)
    weights = load_weights(f"{OWN}plain", str(path), None)
    assert (weights.architecture, weights.labels) == (architecture, ("no", "yes"))


def test_the_interpolation_of_a_network_is_part_of_its_digest_and_refuses_the_gpus_decoder(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    job = {"input": "in", "out": "out", "labels": str(tmp_path / "names.txt")}
    model = load_model(AnnotateConfig.resolve({**job, "model": f"{OWN}bicubic"}))
    assert model.resize.interpolation == "bicubic"
    expected = model.network.preprocessing
    digests = {
        model_digest("net", "0", one, "squash") for one in (expected, replace(expected, interpolation="bilinear"))
    }
    assert len(digests) == 2
    with pytest.raises(UsageError, match=r"^--decode gpu: scales bilinearly; \S+ expects bicubic: allowed: local, rem"):
        load_model(AnnotateConfig.resolve({**job, "model": f"{OWN}bicubic", "decode": "gpu"}))


def test_the_digest_of_a_network_of_an_earlier_version_stays():
    expected = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    text = (
        '{"model": "net", "preprocessing": {"image_size": 224, "mean": [0.485, 0.456, 0.406],'
        ' "std": [0.229, 0.224, 0.225]}, "resize": "squash", "weights": "0"}'
    )
    assert model_digest("net", "0", expected, "squash") == hashlib.sha256(text.encode()).hexdigest()


def test_the_class_in_readme_is_found(monkeypatch, tmp_path):
    (tmp_path / "readme_nets.py").write_text(block("own-network"))
    monkeypatch.syspath_prepend(tmp_path)
    network = load_network("readme_nets:Net", registry.get("readme_nets:Net").published["DEFAULT"].load(), None)
    assert (network.map_size(96), network.preprocessing.interpolation) == ((24, 24), "bicubic")
    assert build_network(Architecture("readme_nets:Net", classes=7)).fc.out_features == 7


def test_stride16_is_found_in_the_users_graph():
    network = registry.get(f"{OWN}plain").outline().eval()
    assert find_stride16(network.trunk, 256) is None
    assert find_stride16(registry.get(CUT).outline().trunk, 32) is None


@pytest.mark.parametrize("method", ["cam", "backprop"])
def test_the_users_network_annotates_in_other_processes(method, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), noise)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    layers = {"feature_layer": "body", "classifier_layer": "fc"}
    options = {"model": f"{OWN}branching", "labels": str(tmp_path / "names.txt"), "method": method, **layers}
    manifest = run_annotate(tmp_path / "in", tmp_path / "out", **options)
    assert manifest.counts.annotated == 2
    assert manifest.lineage.model == CUT
    assert manifest.model == f"tests.their_networks-branching-body-fc-{manifest.lineage.model_digest[:8]}"
    with camlake.open(str(tmp_path / "out")) as lake:
        assert lake.sql("SELECT count(*) FROM heatmaps").fetchall() == [(4,)]


@pytest.mark.parametrize(
    ("model", "named"),
    [("hf/folder", " --model hf/folder"), (CUT, f" --model {CUT}"), ("timm/a", ""), ("resnet18", "")],
)
def test_the_line_after_a_training_names_a_network_that_no_card_may_choose(model, named, monkeypatch):
    epoch = {"train_loss": 1.0}
    progress = SimpleNamespace(history=[epoch], best=epoch, rejected=[])
    monkeypatch.setattr(training, "labelled_images", lambda *_: ([1], [1]))
    monkeypatch.setattr(training, "train_network", lambda *_: progress)
    monkeypatch.setattr(training, "epoch_in_words", str)
    monkeypatch.setattr(jobs.train, "refuse_missing", lambda *_: None)
    lines = []
    screen = SimpleNamespace(result=lambda line, **_: lines.append(line))
    config = SimpleNamespace(input="in", model=model, out="o", supervision="labels", max_rejected=0)
    jobs.train.run(config, screen)
    assert lines[-1] == f"use it:  camlake annotate IMAGES --out LABELS{named} --weights o/best.safetensors"
