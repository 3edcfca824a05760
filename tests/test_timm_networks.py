"""timm's networks: what is found in them, their maps against their own logits, what is refused, what they say."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("timm")

from pipeline.models import registry
from pipeline.models.learn.conversion import build_network
from pipeline.models.learn.pretrained import load_pretrained
from pipeline.models.localize.checking import findings
from pipeline.models.localize.engine import Engine
from pipeline.models.localize.foreground import stride16_name
from pipeline.models.localize.runtime import Runtime
from pipeline.models.networks.architecture import Architecture
from pipeline.models.weights.checkpoint import Card, checkpoint_bytes
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.published import read_published
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import ModelError
from tests.jobs_on import ROOT
from tests.networks import logits_of_maps
from tests.pictures import SMOOTH, encoded

FOUND = {
    "test_resnet": ("linear", "maps", 0),
    "test_byobnet": ("linear", "maps", 0),
    "test_efficientnet": ("linear", "maps", 0),
    "test_efficientnet_ln": ("linear", "maps", 0),
    "test_nfnet": ("linear", "maps", 0),
    "test_convnext": ("normed", "maps", 0),
    "test_convnext2": ("normed", "maps", 0),
    "test_mambaout": ("opaque", "channels last", 0),
    "test_vit2": ("normed", "tokens", 1),
    "lcnet_035": ("opaque", "maps", 0),
}


def initial_state(name):
    """Return the values that a new network of timm has, with noise, so that scales and shifts count."""
    torch.manual_seed(2)
    entry = registry.get(name)
    module = entry.construct(entry.default_architecture).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("name", FOUND)
def test_maps_of_timms_networks_average_to_their_logits(name):
    found = registry.get(f"timm/{name}")
    structure = found.family.cutter.__self__
    assert (structure.kind, structure.layout.form, structure.layout.prefix) == FOUND[name]
    module = initial_state(f"timm/{name}")
    network = load_network(f"timm/{name}", module.state_dict(), None, exact_maps=found.exact_maps)
    side = network.preprocessing.image_size
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        features, expected = network.trunk(pixels), module(pixels)
        assert features.shape == (2, network.channels, *network.map_size(side))
        size = expected.abs().max()
        assert (network.head(features).logits - expected).abs().max() <= 1e-4 * size
        if found.exact_maps:
            assert (logits_of_maps(network.head, features) - expected).abs().max() <= 1e-4 * size


def test_an_engine_folds_timms_norms_and_gives_the_same_maps():
    network = load_network("timm/test_resnet", initial_state("timm/test_resnet").state_dict(), 64)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    name = stride16_name(network)
    assert name is not None
    engine = Engine(network, Runtime("cpu", "fp32", False, 1, 2), name)
    maps = engine.trunk_maps(pixels)
    assert torch.allclose(maps.features, network.features(pixels), atol=1e-4)
    assert maps.stride16.shape[2:] == (4, 4)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in engine._eager.modules())


REFUSALS = {
    "test_vit": r"^timm/test_vit has no exact class activation map: it pools by its class token, not by the mean over",
    "lcnet_035": r"layers that are not affine stand behind the average \(Hardswish\); give --method layercam, or use",
    "resnet5": r"knows no network 'resnet5'; did you mean timm/resnet50",
    "resnet18.mine": r"timm has no weights 'mine' of resnet18; allowed: a1_in1k, ",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_and_what_works_instead(name):
    with pytest.raises(ModelError, match=REFUSALS[name]) as refused:
        registry.get(f"timm/{name}", exact_maps=True)
    assert "\n" not in str(refused.value)


def test_a_file_of_weights_brings_timms_preprocessing_and_imagenets_names(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(initial_state("timm/test_resnet").state_dict(), path)
    weights = load_weights("timm/test_resnet", str(path), None)
    assert weights.preprocessing.image_size == 160
    assert weights.preprocessing.mean == (0.5, 0.5, 0.5)
    assert weights.preprocessing.interpolation == "bilinear"
    assert registry.get("timm/resnet18").preprocessing.interpolation == "bicubic"
    assert weights.labels[:2] == ("tench", "goldfish")


def test_weights_by_name_come_from_timms_own_loader(monkeypatch):
    import timm

    entry = registry.get("timm/test_resnet.r160_in1k")
    assert list(entry.official_weights) == ["DEFAULT", "r160_in1k"]
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
    file = read_published(entry.name, entry.official_weights, "DEFAULT")
    assert file.source == "timm/test_resnet.r160_in1k"
    assert len(file.sha256) == 64
    assert load_network(entry.name, file.state, None).classes == 1000

    def unreachable(name, pretrained=False):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        ModelError, match=r"^timm can't load the weights test_resnet.r160_in1k \(no route\); fetch them"
    ):
        read_published(entry.name, entry.official_weights, "DEFAULT")


@pytest.mark.parametrize(
    "work",
    [
        "from pipeline.models.weights.state_fitting import load_network; load_network('resnet18', None, 64)",
        "from tests.jobs_on import run_annotate; run_annotate(sys.argv[1], sys.argv[2])",
    ],
    ids=["a network", "annotate"],
)
def test_torchvisions_networks_start_without_timm_and_transformers(work, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(encoded(SMOOTH, "PNG"))
    program = (
        f"import sys; {work}\n"
        "print('seen', [name for name in ('timm', 'transformers', 'efficientnet_lite_pytorch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("seen []"), done.stderr


def test_a_trained_timm_network_comes_back_from_its_file(tmp_path):
    import timm

    name = "timm/test_resnet"
    architecture = Architecture(name, classes=2)
    start = tmp_path / "start.pth"
    torch.save(initial_state(name).state_dict(), start)
    begun = load_pretrained(architecture, str(start))
    assert begun.new == ("fc.weight", "fc.bias")
    module = build_network(architecture, begun.state)
    assert module.training
    network = registry.get(name).cam_network(architecture, module, begun.preprocessing)
    facts = registry.origin_facts(name)
    assert facts == {"timm": timm.__version__, "timm_name": "test_resnet"}
    path = tmp_path / "trained.safetensors"
    path.write_bytes(
        checkpoint_bytes(module.state_dict(), Card(architecture, ("no", "yes"), begun.preprocessing, facts=facts))
    )
    weights = load_weights(None, str(path), None)
    assert (weights.architecture, weights.labels) == (architecture, ("no", "yes"))
    again = load_network(name, weights.state, None, preprocessing=weights.preprocessing)
    pixels = torch.randint(0, 256, (1, 160, 160, 3), dtype=torch.uint8)
    with torch.no_grad():
        module.eval()
        assert torch.allclose(again(pixels).logits, network(pixels).logits, atol=1e-4)


def test_models_check_says_what_is_found(capfd):
    facts = findings("timm/test_resnet")
    assert facts["maps from"] == "forward_features, by its methods; laid out as maps"
    assert (facts["map"], facts["channels"], facts["linear layer"], facts["exact maps"]) == ("5×5", 96, "fc", "yes")
    assert str(facts["picture"]).startswith(
        "whole, squashed to 160×160, bilinear, mean 0.5, 0.5, 0.5, deviation 0.5, 0.5"
    )
    assert str(facts["stride-16 tensor"]).endswith(", 10×10")
    assert facts["weights"] == "DEFAULT, r160_in1k"
    findings("timm/eva02_tiny_patch14_224")
    assert capfd.readouterr() == ("", "")
    facts = findings("tests.their_networks:hidden")
    assert str(facts["exact maps"]).startswith("no: layers that are not affine stand behind the average (Tanh); give")


REFUSED_FAMILIES = {"caformer_s18", "convformer_s18"}
FAMILIES = (
    "bat_resnext26ts beitv2_base_patch16_224 botnet26t_256 caformer_s18 coatnext_nano_rw_224 convformer_s18"
    " convmixer_768_32 convnextv2_atto cs3darknet_s darknet17 davit_tiny densenet121 dla46_c dpn48b"
    " edgenext_xx_small efficientnet_lite0 ese_vovnet19b_slim eva02_tiny_patch14_224 fastvit_t8 fbnetc_100"
    " focalnet_tiny_srf gcresnext26ts gcvit_xxtiny gernet_s gmixer_12_224 gmlp_ti16_224 hiera_tiny_224"
    " hrnet_w18_small legacy_seresnet18 levit_128s mixer_s32_224 mixnet_s mnasnet_small mobilenetv1_100"
    " mobilenetv2_035 mobileone_s0 mobilevit_xxs mobilevitv2_050 nest_tiny nextvit_small nf_resnet26 nfnet_f0"
    " poolformerv2_s12 pvt_v2_b0 regnetx_002 regnety_002 regnetz_005 repvgg_a0 repvit_m0_9 res2net50_14w_8s"
    " resmlp_12_224 resnest14d resnet18 resnetv2_18 resnext26ts rexnetr_100 seresnet18 skresnet18"
    " swin_tiny_patch4_window7_224 tf_efficientnetv2_b0 tinynet_e tiny_vit_5m_224 tresnet_m twins_svt_small"
    " vit_medium_patch16_reg4_gap_256 vovnet39a xception41"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.split())
def test_the_smallest_network_of_each_family(name):
    if name in REFUSED_FAMILIES:
        with pytest.raises(ModelError, match=r"^timm/\w+ has no exact class activation map: "):
            registry.get(f"timm/{name}", exact_maps=True)
        return
    entry = registry.get(f"timm/{name}", exact_maps=True)
    load_network(f"timm/{name}", initial_state(f"timm/{name}").state_dict(), None)
    assert entry.exact_maps
