"""Where weights and labels come from, what is checked, and that nothing but tensors is unpickled."""

import hashlib
import io
import json
import pickle
from functools import partial
from http.server import HTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from pipeline.models import registry
from pipeline.models.networks.demo_network import DEMO
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.load_weights import load_weights, model_digest
from pipeline.storage.filesystems import read_url
from schemas.errors import InputError, ModelError
from schemas.options.config import StorageConfig
from tests.checkpoints import LABELS, demo_state, labels_file, same
from tests.serving import QuietHandler, serving


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_file_is_read_whole_and_hashed(tmp_path: Path, suffix: str) -> None:
    state, path = demo_state(), tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    weights = load_weights(DEMO, str(path), labels_file(tmp_path))
    assert same(weights.state, state)
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.source == str(path)
    assert weights.labels == LABELS
    assert weights.preprocessing == registry.get(DEMO).preprocessing


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_checkpoint_of_several_gpus_is_unwrapped(tmp_path: Path, key: str) -> None:
    state = demo_state()
    torch.save({key: {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "net.pt")
    assert same(load_weights(DEMO, str(tmp_path / "net.pt"), labels_file(tmp_path)).state, state)


def test_weights_and_labels_come_from_object_storage(object_store: Any) -> None:
    bucket = object_store.bucket()
    object_store.client.put_object(Bucket=bucket, Key="nets/net.safetensors", Body=save(demo_state()))
    object_store.client.put_object(Bucket=bucket, Key="nets/labels.json", Body=b'["a", "b", "c"]')
    read = partial(read_url, storage=object_store.storage)
    weights = load_weights(DEMO, f"s3://{bucket}/nets/net.safetensors", f"s3://{bucket}/nets/labels.json", read)
    assert same(weights.state, demo_state())
    assert weights.labels == ("a", "b", "c")


def test_labels_stand_in_the_metadata_of_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(demo_state(), path, metadata={"labels": json.dumps(["x", "y", "z"])})
    assert load_weights(DEMO, str(path), None).labels == ("x", "y", "z")
    assert load_weights(DEMO, str(path), labels_file(tmp_path)).labels == LABELS, "--labels wins"


def test_own_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(demo_state(), path, metadata={"labels": json.dumps(list(LABELS))})
    (tmp_path / "turned.txt").write_text("\n".join(reversed(LABELS)))
    with pytest.raises(
        ModelError, match=r"^--labels \S+turned.txt: the names of \S+ in another order; allowed: its own"
    ):
        load_weights(DEMO, str(path), str(tmp_path / "turned.txt"))


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
        (b'["ant", "bee", 7]', ": a JSON list with an empty name or a name that is no text"),
        (b'["ant", "bee"', ": Expecting ',' delimiter"),
        (b"\xff\xfe\x00", ": not UTF-8 text"),
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
        ("nets/net.onnx", "--weights nets/net.onnx: allowed: a .safetensors, .pt, .pth, .pth.tar, .ckpt or .bin file"),
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


class Forbidding(QuietHandler):
    """Answers 403 to everything."""

    def do_GET(self) -> None:  # noqa: N802 (the base class's name)
        self.send_error(403)


def test_secrets_of_a_url_reach_no_message() -> None:
    with serving(HTTPServer(("127.0.0.1", 0), Forbidding)) as host:
        url = f"{host}/nets/net.pt?X-Amz-Signature=hush"
        with pytest.raises(InputError, match=f"^{host}/nets/net.pt can't be read: ") as refusal:
            load_weights("resnet50", url, None, partial(read_url, storage=StorageConfig()))
    assert "hush" not in str(refusal.value)


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
