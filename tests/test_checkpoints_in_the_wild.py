"""Checkpoints in the forms in which training scripts and libraries write them."""

import argparse
import io
import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.annotate.model import load_model
from pipeline.models import registry
from pipeline.models.learn.pretrained import load_pretrained
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.demo_network import DEMO, DemoNetwork
from pipeline.models.weights.load_weights import load_weights, model_digest
from pipeline.models.weights.state_fitting import architecture_of, fit_state
from schemas.errors import ModelError
from schemas.options.annotate import AnnotateConfig
from schemas.options.train import TrainConfig
from tests.checkpoints import LABELS, demo_state, loaded, same, saved
from tests.networks import without_values

State = dict[str, Tensor]
RAW, EMA = demo_state(), {key: value + 1 for key, value in demo_state().items()}


def named(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


TRAINING = {"epoch": 3, "best_acc1": 76.5, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}}
"""What stands beside the weights."""


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"state_dict": RAW, **TRAINING}, id="PyTorch's ImageNet example"),
        pytest.param({"model_state_dict": RAW, "optimizer_state_dict": {}, "loss": 0.5, "epoch": 3}, id="tutorials"),
        pytest.param({"model_state_dict": RAW, "loss": torch.tensor(0.5), "epoch": 3}, id="loss as a tensor"),
        pytest.param({"net": RAW, "acc": 95.2, "epoch": 3}, id="pytorch-cifar"),
        pytest.param({"network": RAW, "it": 3}, id="network"),
        pytest.param({"model": RAW, **TRAINING}, id="torchvision's references, DeiT, Swin"),
        pytest.param({"model": RAW, "model_ema": None, **TRAINING}, id="EMA switched off"),
        pytest.param({"model_state": RAW, **TRAINING}, id="pycls"),
        pytest.param({"model": RAW, "opt": {"state": {}, "hypers": []}}, id="fastai"),
        pytest.param({"state": {"model": RAW, "timestamp": {}}, "rng": []}, id="Composer"),
        pytest.param({"module": RAW, "global_steps": 3, "dp_world_size": 2}, id="DeepSpeed"),
        pytest.param({"meta": {"CLASSES": ["a"]}, "state_dict": RAW, **TRAINING}, id="mmpretrain"),
        pytest.param({"classifier": RAW, "epoch": 3}, id="a key of the script's own"),
        pytest.param({"swa": {"n_averaged": torch.tensor(7), **named("module.", RAW)}}, id="AveragedModel by any name"),
        pytest.param({"state": 3, "model": RAW}, id="a number under a usual key"),
        pytest.param({"ema": EMA | RAW}, id="only averaged weights"),
        pytest.param({"ema": {"module": RAW, "decay": 0.99, "updates": 7}}, id="the wrapper's own state"),
        pytest.param({"state_dict": {"state_dict": RAW}}, id="twice"),
        pytest.param(named("module.", RAW), id="DataParallel"),
        pytest.param(named("_orig_mod.", RAW), id="torch.compile"),
        pytest.param(named("module._orig_mod.", RAW), id="DDP around a compiled network"),
        pytest.param(named("_orig_mod.module.", RAW), id="a compiled DDP"),
        pytest.param(named("module.module.", RAW), id="DataParallel twice"),
        pytest.param({"state_dict": named("model.", RAW)}, id="Lightning"),
        pytest.param({"state_dict": named("net.", RAW)}, id="Lightning with net"),
        pytest.param({"state_dict": named("backbone.", RAW)}, id="backbone"),
        pytest.param({"state_dict": named("model._orig_mod.", RAW)}, id="Lightning around a compiled network"),
        pytest.param({"model": named("module.model.", RAW)}, id="DDP around a module with a network"),
        pytest.param(
            {"state_dict": named("model.", RAW) | {"criterion.weight": torch.ones(3), "top1.total": torch.tensor(1)}},
            id="Lightning with weights of a loss and a metric",
        ),
        pytest.param({"n_averaged": torch.tensor(7), **named("module.", RAW)}, id="AveragedModel"),
        pytest.param({"n_averaged": torch.tensor(7), **named("module.module.", RAW)}, id="AveragedModel of a DDP"),
        pytest.param(OrderedDict(RAW), id="OrderedDict"),
        pytest.param({"state_dict": RAW, "args": argparse.Namespace(lr=0.1, out=Path("/x"))}, id="command line"),
        pytest.param({"state_dict": RAW, "acc": np.float64(0.9), "n": np.int64(3)}, id="NumPy numbers"),
    ],
)
def test_the_state_dict_is_found(content: Any) -> None:
    found = loaded(saved(content))
    assert same(found.state, RAW)
    assert (found.source, found.key) == ("net.pth", None)


def test_states_that_torchs_own_classes_write() -> None:
    network = DemoNetwork(3)
    average = AveragedModel(DataParallel(network), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(DataParallel(network))
    found = loaded(saved({"model": network.state_dict(), "model_ema": average.state_dict()}))
    assert found.source == "net.pth (model_ema)"
    assert same(found.state, network.state_dict())
    compiled = torch.compile(nn.Sequential(OrderedDict(model=network)))
    assert same(loaded(saved(compiled.state_dict())).state, network.state_dict())


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a.bin", "a.pth.tar", "runs/version_3/epoch=9.CKPT"])
def test_suffixes_of_torch_save(name: str) -> None:
    assert same(loaded(saved({"state_dict": RAW}), name).state, RAW)


def test_files_before_torch_1_6_are_read() -> None:
    assert same(loaded(saved({"net": RAW}, _use_new_zipfile_serialization=False), "a.pth.tar").state, RAW)


@pytest.mark.parametrize(
    ("content", "averaged", "other"),
    [
        ({"state_dict": RAW, "state_dict_ema": EMA}, "state_dict_ema", "state_dict"),
        ({"model": RAW, "model_ema": {"n_averaged": torch.tensor(1), **named("module.", EMA)}}, "model_ema", "model"),
        ({"model": RAW, "ema": {"module": EMA, "decay": 0.9, "updates": 3}}, "ema", "model"),
        ({"model_state_dict": RAW, "ema_state_dict": EMA}, "ema_state_dict", "model_state_dict"),
        (
            {"state_dict": RAW, "ema_state_dict": named("module.", EMA) | {"steps": torch.tensor(3)}},
            "ema_state_dict",
            "state_dict",
        ),
        (
            {"state_dict": named("model.", RAW) | named("model_ema.module.", EMA)},
            "state_dict.model_ema",
            "state_dict.model",
        ),
        (
            {
                "initted": torch.tensor(1),
                "step": torch.tensor(9),
                **named("online_model.", RAW),
                **named("ema_model.", EMA),
            },
            "ema_model",
            "online_model",
        ),
        ({"student": named("module.", RAW), "teacher": EMA}, "teacher", "student"),
        ({"params": RAW, "params_ema": EMA}, "params_ema", "params"),
        ({"state": {"model": RAW, "ema": {"model_ema": EMA}}}, "state.ema", "state.model"),
    ],
)
def test_averaged_weights_are_taken_and_named(content: Any, averaged: str, other: str) -> None:
    found = loaded(saved(content))
    assert same(found.state, EMA)
    assert found.source.startswith(f"net.pth ({averaged}")
    assert same(loaded(saved(content), key=averaged).state, EMA)
    chosen = loaded(saved(content), key=other)
    assert same(chosen.state, RAW)
    assert chosen.source.startswith(f"net.pth ({other}")
    assert chosen.sha256 == found.sha256
    own = registry.get(DEMO).preprocessing
    digests = {model_digest(DEMO, each.sha256, own, "squash", each.key) for each in (found, chosen)}
    assert len(digests) == 2, "outputs of the two are told apart"


def test_a_safetensors_file_has_prefixes_and_averages_too() -> None:
    assert same(loaded(save_safetensors(named("_orig_mod.", RAW)), "model.safetensors").state, RAW)
    both = save_safetensors(named("online_model.", RAW) | named("ema_model.", EMA))
    assert same(loaded(both, "model.safetensors").state, EMA)
    assert same(loaded(both, "model.safetensors", key="online_model").state, RAW)


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"state_dict": RAW, "state_dict_ema": EMA}, "ema", "has no such state dict; allowed: state_dict_ema, state_d"),
        (RAW, "ema", "has no such state dict; allowed: no key, for the file is one state dict"),
        ({"generator": RAW, "critic": EMA}, None, "holds several state dicts: name one with --weights-key: generator"),
        ({"epoch": 3, "optimizer": {}}, None, "'epoch' is a int, not a tensor"),
        ({}, None, "'classifier.weight' is missing"),
        (named("teacher_net.", RAW) | named("student_net.", EMA), None, "'classifier.weight' is missing"),
    ],
)
def test_what_can_not_be_decided_is_refused(content: Any, key: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message) as refusal:
        loaded(saved(content), key=key)
    assert "\n" not in str(refusal.value)


def test_one_of_several_unknown_keys_can_be_chosen() -> None:
    assert same(loaded(saved({"generator": RAW, "critic": EMA}), key="critic").state, EMA)


def test_weights_by_name_have_no_key() -> None:
    with pytest.raises(ModelError, match="--weights-key ema: allowed where --weights is a file"):
        load_weights(DEMO, "DEFAULT", None, key="ema")


class Hyperparameters(dict[str, Any]):
    """A class of a training library, as a checkpoint may hold one."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", [Hyperparameters(lr=0.1), nn.Linear(1, 1)])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_what_weights_only_refuses_is_named(value: Any, zipped: bool) -> None:
    content = saved({"state_dict": RAW, "extra": value}, _use_new_zipfile_serialization=zipped)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    with pytest.raises(ModelError, match=rf"^--weights net\.pth .* it holds {kind}; save model\.state_dict\(\)$"):
        loaded(content)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_not_run() -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), file)
    with pytest.raises(ModelError, match=r"net\.pth is a TorchScript program, and none is run; save model\.state_dict"):
        loaded(file.getvalue())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_plain_values_run_no_code(tmp_path: Path) -> None:
    class Marker:
        def __reduce__(self) -> tuple[Any, ...]:
            return partial(Path.touch, tmp_path / "executed"), ()

    values = {"args": argparse.Namespace(marker=Marker()), "state_dict": RAW}
    for content in (saved(values), pickle.dumps(values, protocol=2)):
        with pytest.raises(ModelError, match="nothing else is unpickled"):
            loaded(content)
    assert not (tmp_path / "executed").exists()


def test_mmpretrains_names_of_a_resnet() -> None:
    state = without_values(Architecture("resnet18", classes=7)).state_dict()
    theirs = {f"{'head.' if key.startswith('fc.') else 'backbone.'}{key}": value for key, value in state.items()}
    assert fit_state(registry.get("resnet18"), theirs).keys() == state.keys()


def test_auxiliary_classifiers_stay_out_under_a_prefix() -> None:
    entry = registry.get("inception_v3")
    state = without_values(Architecture("inception_v3")).state_dict() | {"AuxLogits.fc.weight": torch.zeros(1000, 768)}
    fitting = fit_state(entry, named("module.", state))
    assert "AuxLogits.fc.weight" not in fitting
    assert architecture_of(entry, fitting).classes == 1000


def test_other_networks_weights_are_still_recognized_under_a_prefix() -> None:
    state = without_values(Architecture("squeezenet1_1")).state_dict()
    with pytest.raises(ModelError, match=r"they fit squeezenet1_1$"):
        fit_state(registry.get("squeezenet1_0"), named("module.", state))


def files(folder: Path, content: Any) -> dict[str, str]:
    (folder / "net.pth.tar").write_bytes(saved(content))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    return {"weights": str(folder / "net.pth.tar"), "labels": str(folder / "labels.txt"), "model": DEMO}


def test_the_option_reaches_both_verbs(tmp_path: Path) -> None:
    options = files(tmp_path, {"model": RAW, "model_ema": EMA})
    models = [
        load_model(AnnotateConfig.resolve({"input": "in", "out": "out", **options, **key}))
        for key in ({}, {"weights_key": "model"})
    ]
    assert [model.weights.source.rsplit("/", 1)[1] for model in models] == [
        "net.pth.tar (model_ema)",
        "net.pth.tar (model)",
    ]
    assert models[0].partition != models[1].partition
    config = TrainConfig.resolve({"input": "in", "out": "out", "weights": options["weights"], "weights_key": "model"})
    start = load_pretrained(Architecture(DEMO, classes=2), config.weights, key=config.weights_key)
    assert start.source == f"{options['weights']} (model)"
    assert torch.equal(start.state["features.0.weight"], RAW["features.0.weight"])
