"""Where weights and labels come from, what is checked, and that nothing but tensors is unpickled."""

import hashlib
import io
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save, save_file
from torch import Tensor, nn

from pipeline.models.architecture import Architecture
from pipeline.models.checkpoint import CARD_KEY, Card, checkpoint_bytes, shown
from pipeline.models.convert import build_network
from pipeline.models.network import Preprocessing
from pipeline.models.registry import DEMO, load_network, preprocessing_of, without_values
from pipeline.models.tiny import TinyCam
from pipeline.models.weights import load_pretrained, load_weights, model_digest
from pipeline.storage.filesystems import read_url
from schemas.config import StorageConfig
from schemas.errors import InputError, ModelError

LABELS = ("ant", "bee", "<b>wasp</b>")


def demo_state(classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return TinyCam(classes).state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def labels(tmp_path: Path) -> str:
    path = tmp_path / "labels.txt"
    path.write_text("ant\nbee\n<b>wasp</b>\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_file_is_read_whole_and_hashed(tmp_path: Path, labels: str, suffix: str) -> None:
    state, path = demo_state(), tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    weights = load_weights(DEMO, str(path), labels)
    assert same(weights.state, state)
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.source == str(path)
    assert weights.labels == LABELS
    assert weights.preprocessing == preprocessing_of(DEMO)


def read_either(weights: bytes, path: str) -> bytes:
    """Read the labels from their file and hand out ``weights`` for any other."""
    return weights if path.startswith("net.") else Path(path).read_bytes()


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_checkpoint_of_several_gpus_is_unwrapped(tmp_path: Path, labels: str, key: str) -> None:
    state = demo_state()
    torch.save({key: {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "net.pt")
    assert same(load_weights(DEMO, str(tmp_path / "net.pt"), labels).state, state)


def test_weights_and_labels_come_from_object_storage(object_store: Any) -> None:
    bucket = object_store.bucket()
    object_store.client.put_object(Bucket=bucket, Key="nets/net.safetensors", Body=save(demo_state()))
    object_store.client.put_object(Bucket=bucket, Key="nets/labels.json", Body=b'["a", "b", "c"]')
    read = partial(read_url, storage=object_store.storage)
    weights = load_weights(DEMO, f"s3://{bucket}/nets/net.safetensors", f"s3://{bucket}/nets/labels.json", read)
    assert same(weights.state, demo_state())
    assert weights.labels == ("a", "b", "c")


def test_labels_stand_in_the_metadata_of_a_safetensors_file(tmp_path: Path, labels: str) -> None:
    path = tmp_path / "net.safetensors"
    save_file(demo_state(), path, metadata={"labels": json.dumps(["x", "y", "z"])})
    assert load_weights(DEMO, str(path), None).labels == ("x", "y", "z")
    assert load_weights(DEMO, str(path), labels).labels == LABELS, "--labels wins"


def test_a_thousand_classes_without_labels_are_imagenets() -> None:
    found = load_weights(DEMO, "net.safetensors", None, lambda _: save(demo_state(1000))).labels
    assert (len(found), found[340], found[999]) == (1000, "zebra", "toilet tissue")


def test_labels_are_never_invented(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(demo_state(), path)
    with pytest.raises(ModelError, match="has 3 classes and no names for them: give one name a class with --labels"):
        load_weights(DEMO, str(path), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ant\nbee\n", "2 labels for the 3 classes"),
        (b'["ant", "bee"]', "2 labels for the 3 classes"),
        (b'["ant", "bee", 7]', "is no JSON list of names"),
        (b'["ant", "bee"', "is no JSON list: "),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_labels_that_do_not_match_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    save_file(demo_state(), tmp_path / "net.safetensors")
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_weights(DEMO, str(tmp_path / "net.safetensors"), str(tmp_path / "labels"))


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_labels(tmp_path: Path) -> None:
    save_file(demo_state(), tmp_path / "net.safetensors")
    (tmp_path / "labels").write_bytes("\ufeffant\r\nbée\r\ncat\r\n\r\n".encode())
    found = load_weights(DEMO, str(tmp_path / "net.safetensors"), str(tmp_path / "labels")).labels
    assert found == ("ant", "bée", "cat")


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
    labels: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], problem: str
) -> None:
    with pytest.raises(ModelError, match=f"^the weights don't fit {DEMO}: {problem}$"):
        load_weights(DEMO, "net.safetensors", labels, partial(read_either, save(change(demo_state()))))


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


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"state_dict": Marker(marker)}, tmp_path / "net.pt")
    (tmp_path / "net.pth").write_bytes(pickle.dumps(Marker(marker), protocol=2))
    for name in ("net.pt", "net.pth"):
        with pytest.raises(ModelError, match="is no plain state dict, and nothing else is unpickled"):
            load_weights(DEMO, str(tmp_path / name), None)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "saved", "message"),
    [
        ("net.pt", nn.Linear(1, 1), "is no plain state dict, and nothing else is unpickled"),
        ("net.pt", [1, 2], "holds a list, not a state dict"),
        ("net.pt", {"weight": torch.zeros(1), "epoch": 3}, "is no state dict: 'epoch' is a int, not a tensor"),
    ],
)
def test_other_contents_of_torch_save_are_refused(tmp_path: Path, name: str, saved: Any, message: str) -> None:
    torch.save(saved, tmp_path / name)
    with pytest.raises(ModelError, match=message):
        load_weights(DEMO, str(tmp_path / name), None)


SMALL = {"weight": torch.zeros(30), "steps": torch.ones(3, dtype=torch.int64)}


def saved_by_torch(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(SMALL, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize(
    ("suffix", "content"),
    [("safetensors", save(SMALL)), ("pt", saved_by_torch(zipped=True)), ("pth", saved_by_torch(zipped=False))],
    ids=["safetensors", "zip", "legacy"],
)
def test_cut_and_garbled_files_are_refused_in_one_line(suffix: str, content: bytes) -> None:
    random = Random(11)
    for _ in range(400):
        garbled = bytearray(content[: random.choice([len(content), random.randrange(len(content))])])
        for _ in range(min(len(garbled), random.randrange(4))):
            garbled[random.randrange(len(garbled))] = random.randrange(256)
        with pytest.raises(ModelError) as refusal:
            load_weights(DEMO, f"net.{suffix}", None, lambda _, whole=bytes(garbled): whole)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("IMAGENET1K_V3", "of resnet50: allowed: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, or a .safetensors, .pt"),
        ("nets/net.bin", "--weights nets/net.bin: allowed: a .safetensors, .pt or .pth file"),
        ("nowhere/net.pt", "nowhere/net.pt can't be read: No such file"),
    ],
)
def test_weights_that_can_not_be_meant(weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_weights("resnet50", weights, None)


def test_a_missing_bucket_is_one_line(object_store: Any) -> None:
    read = partial(read_url, storage=object_store.storage)
    with pytest.raises(InputError, match=r"^s3://camlake-none/net.pt can't be read: [^\n]+$"):
        load_weights("resnet50", "s3://camlake-none/net.pt", None, read)


def test_an_unknown_or_refused_network_is_named_before_anything_is_fetched() -> None:
    with pytest.raises(ModelError, match="did you mean 'resnet50'"):
        load_weights("resnet5o", "DEFAULT", None)
    with pytest.raises(ModelError, match="vgg16 has no exact class activation map"):
        load_weights("vgg16", "nowhere/net.pt", None)


CARD = Card(
    Architecture("vgg16_gap", "gmp", 0.125, 3),
    LABELS,
    Preprocessing(64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
    multi_label=True,
    facts={"data": "ab12", "metrics": {"top1": 0.75}},
)


def trained() -> dict[str, Tensor]:
    torch.manual_seed(8)
    return build_network(CARD.architecture).state_dict()


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


def test_labels_of_the_user_and_another_size_win_over_the_card(labels: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(checkpoint_bytes(trained(), replace(CARD, labels=("x", "y", "z"))))
    weights = load_weights(None, str(path), labels)
    assert weights.labels == LABELS
    network = load_network("vgg16_gap", weights.state, 96, preprocessing=weights.preprocessing)
    assert network.preprocessing == replace(CARD.preprocessing, image_size=96)


def test_the_card_can_be_read_beside_its_weights() -> None:
    assert json.loads(CARD.json()) == {
        "architecture": {"name": "vgg16_gap", "pooling": "gmp", "width": 0.125, "classes": 3},
        "labels": list(LABELS),
        "preprocessing": {"image_size": 64, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
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


def test_a_file_without_card_needs_the_name_of_its_network(labels: str) -> None:
    with pytest.raises(ModelError, match=r"^net.safetensors has no card that names its network: name it with --model$"):
        load_weights(None, "net.safetensors", labels, lambda _: save(demo_state()))


def test_cam_forms_have_no_trained_weights_to_download() -> None:
    with pytest.raises(
        ModelError, match=r"^--weights DEFAULT: there are no trained ones of vgg16_gap; `camlake train` "
    ):
        load_weights("vgg16_gap", "DEFAULT", None)
    with pytest.raises(
        ModelError, match=r"^--weights DEFAULT: torchvision has none for vgg16c_gap; start it from random"
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


class Forbidding(BaseHTTPRequestHandler):
    """Answers 403 to everything."""

    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def forbidding() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Forbidding)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_secrets_of_a_url_reach_no_message(forbidding: str) -> None:
    url = f"http://{forbidding}/nets/net.pt?X-Amz-Signature=hush"
    with pytest.raises(InputError, match=f"^http://{forbidding}/nets/net.pt can't be read: ") as refusal:
        load_weights("resnet50", url, None, partial(read_url, storage=StorageConfig()))
    assert "hush" not in str(refusal.value)


def test_shown_urls_keep_what_names_the_object() -> None:
    assert shown("https://me:hush@host/a/net.pt?sig=hush#x") == "https://host/a/net.pt"
    assert shown("s3://bucket/a@b/what?net#1.pt") == "s3://bucket/a@b/what?net#1.pt"
    assert shown("/data/a?b@c.pt") == "/data/a?b@c.pt"


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
    assert found.preprocessing == preprocessing_of("googlenet")
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
    entry = torchvision.models.RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_E2E_V1
    assert preprocessing_of("regnet_y_16gf", entry).image_size == 384
    assert preprocessing_of("regnet_y_16gf").image_size == 224
    assert preprocessing_of("efficientnet_v2_l") == Preprocessing(480, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_the_digest_depends_on_everything_that_decides_the_results() -> None:
    own = Preprocessing(224, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    digests = {
        model_digest("resnet50", "ab", own, "squash"),
        model_digest("resnet18", "ab", own, "squash"),
        model_digest("resnet50", "cd", own, "squash"),
        model_digest("resnet50", "ab", own, "fit"),
        model_digest("resnet50", "ab", Preprocessing(256, own.mean, own.std), "squash"),
        model_digest("resnet50", "ab", Preprocessing(224, own.mean, (0.3, 0.2, 0.2)), "squash"),
    }
    assert len(digests) == 6
    assert model_digest("resnet50", "ab", own, "squash") in digests
    assert all(len(digest) == 64 for digest in digests)
