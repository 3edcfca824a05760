"""``camlake.open(OUT).maps(head)``: the maps of a head as records, against the feature maps by hand."""

import numpy as np
import pytest

from jobs.compact import run as compact
from jobs.terminal.console import Screen
from pipeline import camlake
from schemas.errors import UsageError
from schemas.options.compact import CompactConfig
from tests.fake_lake import FakeLake
from tests.feature_lake import add_run, feature_lake, head_by_hand

IMAGES = 12


@pytest.fixture
def source(tmp_path):
    return feature_lake(str(tmp_path / "labels"), IMAGES)


def test_maps_are_sums_of_the_feature_maps_of_current_images(source, tmp_path):
    path, head = head_by_hand(tmp_path)
    add_run(source, [1, IMAGES])
    with camlake.open(source.out) as lake:
        found = list(lake.maps(path, ["leaf", "cup"]))
        codes = {row["image_id"]: row for row in lake.arrow("feature_maps").to_pylist()}
        features = {row["image_id"]: row for row in lake.arrow("features").to_pylist()}
        assert [one._replace(heat=None) for one in lake.maps(head)] == [
            one._replace(heat=None) for one in lake.maps(path)
        ]
    uris = {f"p/{number}.jpg" for number in range(IMAGES + 1)}
    assert len(found) == 2 * len(uris)
    assert {one.uri for one in found} == uris
    assert [one.label for one in found] == ["leaf", "cup"] * len(uris)
    for one in found:
        weight = head.weight[one.class_id]
        maps = camlake.feature_map(codes[one.image_id], features[one.image_id])
        assert one.heat == pytest.approx(np.tensordot(weight, maps, 1), abs=1e-5)
        logit = one.heat.mean() + head.bias[one.class_id]
        assert one.prob == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)


def test_maps_of_a_compacted_output_are_the_same(source, tmp_path):
    path, _ = head_by_hand(tmp_path)
    add_run(source, [1, IMAGES])

    def maps():
        with camlake.open(source.out) as lake:
            found = {(one.image_id, one.label): one for one in lake.maps(path)}
        return {key: found[key] for key in sorted(found)}

    before = maps()
    compact(CompactConfig.resolve({"out": source.out, "grace": "0s"}), Screen())
    after = maps()
    assert list(after) == list(before)
    for key, one in after.items():
        assert np.array_equal(one.heat, before[key].heat)


def test_padding_is_cut_off(tmp_path):
    lake = feature_lake(str(tmp_path / "labels"), 4, resize="fit")
    path, _ = head_by_hand(tmp_path, classes=("cup",))
    with camlake.open(lake.out) as opened:
        assert {one.heat.shape for one in opened.maps(path)} == {(2, 4)}


def test_refusals(source, tmp_path):
    path, _ = head_by_hand(tmp_path)
    other, _ = head_by_hand(tmp_path, digest="other", name="other.safetensors")
    plain = FakeLake(str(tmp_path / "plain"))
    plain.run({"a": "v1"})
    with camlake.open(source.out) as lake, camlake.open(plain.out) as bare:
        for opened, options, said in [
            (lake, (path, ["dog"]), r"^class 'dog': the head has cup, key, leaf$"),
            (lake, (other,), r"^--head .*: was fitted on features of tiny-12345678, and "),
            (lake, (path, None, "resnet50"), r"^model 'resnet50': this output has tiny-12345678$"),
            (bare, (path,), r"has no feature_maps; annotate with --outputs"),
        ]:
            with pytest.raises(UsageError, match=said):
                opened.maps(*options)
