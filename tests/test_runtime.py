"""How a network runs changes nothing but rounding: folded norms, number types, compiled trunks and padded batches."""

import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from jobs.benchmark import gpu
from jobs.terminal.console import Screen
from pipeline.annotate.annotate_stage import BusyClock
from pipeline.models import registry
from pipeline.models.localize.engine import Engine, Staging
from pipeline.models.localize.runtime import Runtime, resolve_precision
from pipeline.models.networks.heads import LinearHead
from pipeline.models.networks.network import CamNetwork, Preprocessing
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import ModelError, UsageError
from schemas.options.benchmark import BenchmarkConfig

MEMBERS = {
    "camlake_demo": 48,
    "alexnet_gap": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet_gap": 64,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "nin": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_lrn_gap": 64,
}
"""A small member of each family, and the side of its input."""


def runtime(precision="fp32", *, compile=False, batch_size=4):  # noqa: A002 (the runtime's own word)
    return Runtime("cpu", precision, compile=compile, threads=1, batch_size=batch_size)


def pictures(n, side, seed=0):
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def features_of(network, pixels, **how):
    with torch.no_grad():
        return Engine(network, runtime(**how))(pixels)


def error_of(features, expected):
    return ((features - expected).norm() / expected.norm()).item()


class TestPrecision:
    def test_what_is_asked_for_is_taken(self):
        assert resolve_precision("fp16", "cpu") == "fp16"
        assert resolve_precision("fp32", "cuda") == "fp32"

    def test_auto_on_cuda(self):
        assert resolve_precision("auto", "cuda") in {"bf16", "fp16"}

    def test_auto_on_cpu_is_bf16_where_the_processor_multiplies_it(self):
        path = Path("/proc/cpuinfo")
        if not path.exists():
            pytest.skip("no /proc/cpuinfo to compare with")
        flags = set(re.findall(r"\w+", path.read_text()))
        native = flags & {"avx512_bf16", "amx_bf16", "bf16"}
        assert resolve_precision("auto", "cpu") == ("bf16" if native else "fp32")


class TestNumberTypes:
    def test_fp32_is_torchvisions_network(self):
        torch.manual_seed(0)
        module = torchvision.models.resnet18().eval()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 2)
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.1)
        network = load_network("resnet18", module.state_dict(), 64)
        pixels = pictures(3, 64)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            expected = module((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
            logits = network.head(features_of(network, pixels)).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)

    def test_every_family_has_a_member_here(self):
        cam_names = [entry.name for entry in registry.entries() if entry.exact_maps]
        others = r"resnext|wide_resnet"  # ResNets with other numbers of channels
        families = {re.match("[a-z]+", re.sub(others, "resnet", name))[0] for name in cam_names}
        assert {re.match("[a-z]+", name)[0] for name in MEMBERS} == families

    @pytest.mark.parametrize("name", MEMBERS)
    def test_bf16_is_close_to_fp32(self, name):
        torch.manual_seed(0)
        network = load_network(name, None, MEMBERS[name])
        pixels = pictures(2, MEMBERS[name])
        with torch.no_grad():
            expected = network.features(pixels)
        exact, short = (features_of(network, pixels, precision=precision) for precision in ("fp32", "bf16"))
        assert exact.shape == short.shape == expected.shape
        assert exact.dtype == short.dtype == torch.float32
        assert error_of(exact, expected) < 1e-5
        # bf16 has 8 bits; autocast's own error is as large, most of it from swin_v2's padding at this size.
        assert 0 < error_of(short, expected) < (0.1 if name == "swin_v2_t" else 0.03)
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


class Branching(nn.Module):
    """Asks for a value on the way, which no compiler can know."""

    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_a_network_that_cannot_be_compiled_is_an_error():
    network = CamNetwork(
        "branching", Branching(), LinearHead(nn.Linear(3, 2)), Preprocessing(8, (0.5,) * 3, (1.0,) * 3)
    )
    with pytest.raises(ModelError, match="--compile on: branching can't be compiled here: "):
        Engine(network, runtime(compile=True)).warm_up()


def test_compiled_batches_have_one_shape_and_the_same_features():
    if not any(shutil.which(os.environ.get(name, name)) for name in ("CXX", "c++", "g++", "clang++")):
        pytest.skip("no C++ compiler: torch.compile has nothing to work with on this machine")
    torch.manual_seed(0)
    network = load_network("camlake_demo", None, 32)
    pixels = pictures(5, 32)
    expected = features_of(network, pixels)
    engine = Engine(network, runtime(compile=True, batch_size=2))
    torch.set_num_threads(1)
    engine.warm_up()
    found = {}

    def run(n):
        torch.set_num_threads(1)  # Each thread has a number of its own; another one would be compiled for.
        with torch.no_grad():
            found[n] = engine(pixels[:n])

    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (2, 1, 5):  # a batch, a short one, two batches and a half
            thread = threading.Thread(target=run, args=(n,))
            thread.start()
            thread.join()
    for n in (2, 1, 5):
        torch.testing.assert_close(found[n], expected[:n], rtol=1e-4, atol=1e-5)


def test_the_suite_of_the_gpu_says_what_it_needs():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device: `camlake benchmark gpu` measures it")
    with pytest.raises(UsageError, match="needs a CUDA device, and this machine has none"):
        gpu.measure(BenchmarkConfig(suite="gpu"), Screen())


def test_parts_of_a_batch_are_copied_to_their_places_in_the_staging_memory():
    staging = Staging(torch.device("cpu"))
    large = torch.arange(4 * 12, dtype=torch.uint8).view(4, 2, 2, 3)
    assert torch.equal(staging.to_device([large[:1], large[1:]]), large)
    assert torch.equal(staging.to_device([large[2:]]), large[2:]), "a smaller batch afterwards"


def test_time_counts_once_however_many_threads_are_at_work():
    clock = BusyClock()
    outside = time.perf_counter()
    with clock:
        inside = time.perf_counter()
        with clock:
            time.sleep(0.05)
        first_s = clock.lap_s()
        time.sleep(0.05)
        inside_s = time.perf_counter() - inside
    outside_s = time.perf_counter() - outside
    time.sleep(0.02)
    assert first_s >= 0.05
    assert inside_s <= first_s + clock.lap_s() <= outside_s
    assert clock.lap_s() == 0
