"""The codec of feature maps: exact codes by hand, bounds for any maps, and a run that stores and verifies them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline import camlake
from pipeline.annotate.annotate_stage import FEATURE_BITS
from pipeline.annotate.model import load_model
from pipeline.arrays.feature_codec import (
    BY_FEATURES,
    channel_order,
    decode,
    encode,
    head_maps,
    is_ordered,
    pack,
    packed_bytes,
    unpack,
)
from pipeline.arrays.rounding import rounded
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.models.localize.feature_maps import refuse_unfit_network
from pipeline.models.localize.stride16 import TrunkMaps
from pipeline.models.networks.heads import LinearHead, NormedHead
from pipeline.models.networks.network import CamNetwork
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.lease import Lease
from schemas.errors import ModelError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from tests.fake_lake import FakeLake, image_id, manifest_of, rows_of
from tests.feature_lake import packed as packed_codes
from tests.hand_made import by_hand, decoded_table, stage_by_hand
from tests.jobs_on import run_annotate

RUN = "20261123T060000-abcdef"
BITS = pytest.mark.parametrize("bits", [2, 3, 4])


def channels(*values):
    """Return maps (1, K, 1, 3) of K channels of three cells."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None, :]


class TestByHand:
    def test_codes_of_two_bits_stand_four_in_a_byte(self):
        # 6, 4, 0 of 6 are 3, 2, 0; a channel of zeros has zeros; 0.1, 1, 0.55 are rint(.3), 3, rint(1.65).
        # The channels' means are 3.3, 0 and .55: the one of zeros comes last.
        packed = packed_codes(channels([6, 4, 0], [0, 0, 0], [0.1, 1, 0.55]), bits=2)
        assert packed.tolist() == [[3 | 2 << 2 | 0 << 4 | 0 << 6, 3 | 2 << 2, 0, BY_FEATURES]]
        assert unpack(packed, 2, 9).tolist() == [[3, 2, 0, 0, 3, 2, 0, 0, 0]]

    @pytest.mark.parametrize(("bits", "codes"), [(3, [11, 7, 0, 0, 3, 2]), (4, [15, 10, 0, 2, 15, 8])])
    def test_codes_of_three_and_four_bits_stand_two_in_a_byte(self, bits, codes):
        # With 3 bits the maxima 6 and 1, 3.5 on average, give rint(7.2 · (6/3.5)^.8) = 11 and rint(7.2 / 3.5^.8) = 3.
        packed = packed_codes(channels([6, 4, 0], [0.1, 1, 0.55]), bits)
        low, high = codes[::2], codes[1::2]
        assert packed.tolist() == [[*(one | other << 4 for one, other in zip(low, high, strict=True)), BY_FEATURES]]
        assert unpack(packed, bits, 6).tolist() == [codes]

    def test_maps_are_read_against_their_means(self):
        packed = packed_codes(channels([6, 4, 0], [0, 0, 0], [2, 2, 2]), bits=2)
        maps = decode(packed, 2, (1, 3), np.array([[10 / 3, 0, 2]], np.float32))
        assert maps[0, 0, 0] == pytest.approx([10 * 3 / 5, 10 * 2 / 5, 0])
        assert maps[0, 1:, 0].tolist() == [[0, 0, 0], [2, 2, 2]]
        heads = head_maps(packed, 2, (1, 3), np.array([[10 / 3, 0, 2]], np.float32), np.array([[1, 9, -2]], np.float32))
        assert heads[0, 0, 0] == pytest.approx([6 - 4, 4 - 4, -4], abs=1e-6)

    @BITS
    def test_an_image_without_a_value_has_codes_of_zero(self, bits):
        maps = torch.cat([channels([0, 0, 0], [0, 0, 0]), channels([1, 0, 0], [0, 0, 0])])
        assert not packed_codes(maps, bits)[0, :-1].any()
        assert packed_codes(maps, bits)[1, :-1].any()

    def test_one_image_of_nan_leaves_the_others_alone(self):
        maps = torch.cat([channels([6, 4, 0]), channels([float("nan"), float("inf"), 1])])
        assert packed_codes(maps, 2)[0].tolist() == packed_codes(maps[:1], 2)[0].tolist()

    def test_channels_lie_from_large_features_to_small_ones_by_powers_of_two(self):
        vectors = np.array([[0, 3, 1e-9, 9, 2, 15.9, 1e6, np.inf]], np.float32)
        assert channel_order(vectors).tolist() == [[6, 7, 3, 5, 1, 4, 0, 2]]

    @BITS
    def test_rows_of_older_versions_have_the_network_s_order_and_no_last_byte(self, bits):
        maps = torch.arange(24.0).reshape(2, 3, 2, 2)
        means = maps.mean((2, 3)).numpy()
        new = packed_codes(maps, bits)
        one_size = np.ones_like(means)
        old = pack(encode(maps, bits).numpy(), one_size, bits)[:, :-1]
        assert channel_order(one_size).tolist() == [[0, 1, 2]] * 2
        assert (is_ordered(new, bits, 12), is_ordered(old, bits, 12)) == (True, False)
        assert (decode(old, bits, (2, 2), means) == decode(new, bits, (2, 2), means)).all()
        weights = np.array([[1, -2, 3]], np.float32)
        both = [head_maps(packed, bits, (2, 2), means, weights) for packed in (old, new)]
        assert both[0] == pytest.approx(both[1], rel=1e-5)

    @pytest.mark.parametrize("packed", [[[0, 0, 2]], [[0]], [[0, 0, 1, 1]]])
    def test_codes_of_another_form_are_refused(self, packed):
        with pytest.raises(ValueError, match=r"^codes of another form than 2 bytes and a byte of 1$"):
            is_ordered(np.array(packed, np.uint8), 4, 4)


@BITS
@settings(max_examples=40)
@given(data=st.data())
def test_round_trip_bounds(bits, data):
    shape = data.draw(array_shapes(min_dims=4, max_dims=4, max_side=5))
    maps = data.draw(arrays(np.float32, shape, elements=st.floats(0, 1e4, width=32, allow_subnormal=False)))
    maps = np.where(maps < 1e-20, np.float32(0), maps)
    means = maps.astype(np.float64).mean((2, 3)).astype(np.float32)
    packed = pack(encode(torch.from_numpy(maps), bits).numpy(), means, bits)
    assert packed.shape == (len(maps), packed_bytes(maps[0].size, bits) + 1)
    codes = unpack(packed, bits, maps[0].size).reshape(*maps.shape[:2], -1)
    codes = np.take_along_axis(codes, np.argsort(channel_order(means), axis=1)[:, :, None], axis=1).reshape(maps.shape)
    top, peak = codes.max((2, 3)), maps.max((2, 3))
    assert ((top > 0) == (peak > 0)).all()
    assert top.max() <= (3 if bits == 2 else 15)
    if bits != 3:
        assert set(np.unique(top)) <= {0, 2**bits - 1}
    found = decode(packed, bits, shape[2:], means)
    assert np.allclose(found.mean((2, 3)), means, rtol=1e-5)
    mean_code = np.maximum(codes.mean((2, 3), keepdims=True), 1e-9)
    bound = (maps + means[:, :, None, None]) / (2 * mean_code)
    assert (np.abs(found - maps) <= bound * (1 + 1e-4) + 1e-6).all()
    weights = np.random.default_rng(0).normal(size=(2, shape[1])).astype(np.float32)
    sums = np.einsum("ck,nkhw->nchw", weights, found)
    close = 1e-4 * max(1.0, float(np.abs(found).max()))
    assert np.allclose(head_maps(packed, bits, shape[2:], means, weights), sums, atol=close)


@given(arrays(np.float32, 20, elements=st.floats(0, 6e4, width=32)))
def test_the_order_does_not_change_where_features_are_rounded(values):
    order = channel_order(values[None]).tolist()
    assert channel_order(values.astype(np.float16).astype(np.float32)[None]).tolist() == order
    assert channel_order(rounded(values, FEATURE_BITS)[None]).tolist() == order


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"outputs": "boxes,feature_maps"}, r"^--outputs feature_maps: allowed: with features"),
            ({"method": "gradcam"}, "^--outputs feature_maps: allowed: with --method cam, here gradcam$"),
            ({"tta": "flip"}, "with one view of each picture, here --tta flip --scales 1$"),
            ({"scales": "1,1.5"}, "with one view of each picture, here --tta none --scales 1,1.5$"),
            ({"feature_map_bits": 5}, "^--feature-map-bits 5: "),
            (
                {"outputs": "boxes", "feature_map_bits": 2},
                "^--feature-map-bits 2: allowed: with --outputs feature_maps$",
            ),
        ],
    )
    def test_options(self, options, said):
        values = {"input": "in", "out": "out", "outputs": "features,feature_maps"}
        with pytest.raises(UsageError, match=said):
            AnnotateConfig.resolve(values | options)

    def test_networks(self):
        network = by_hand([[1, 0, 0]])
        refuse_unfit_network(network)
        signed = CamNetwork("signed", torch.nn.SiLU(), network.head, network.preprocessing)
        most = CamNetwork("most", network.trunk, LinearHead(network.head.linear, "gmp"), network.preprocessing)
        normed = NormedHead(torch.nn.LayerNorm(3), network.head.linear)
        normed = CamNetwork("normed", network.trunk, normed, network.preprocessing)
        for one, said in ((most, "most has no global average"), (normed, "normed normalizes its averages")):
            with pytest.raises(UsageError, match=f"^--outputs feature_maps: {said}"):
                refuse_unfit_network(one)
        shifted = torch.nn.Sequential(network.trunk, torch.nn.Hardtanh(-1, 1))
        shifted[0].forward = lambda images: images - 0.5
        with pytest.raises(UsageError, match="signed has feature maps below zero"):
            refuse_unfit_network(CamNetwork("signed", shifted, signed.head, network.preprocessing))


def test_the_stage_packs_what_the_network_saw():
    pixels = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    rows = stage_by_hand(feature_map_bits=4).annotate(decoded_table([one.tobytes() for one in pixels])).to_pylist()
    blocks = pixels.reshape(3, 4, 2, 4, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255
    for row, true in zip(rows, blocks, strict=True):
        assert [row[name] for name in ("map_h", "map_w", "channels", "bits")] == [4, 4, 3, 4]
        row["run_id"] = "one"
        assert np.abs(camlake.feature_map(row, row) - true).max() < true.max() / 15
    plain = stage_by_hand().annotate(decoded_table([one.tobytes() for one in pixels]))
    assert plain["codes"].null_count == 3


def test_maps_below_zero_end_the_run():
    stage = stage_by_hand(feature_map_bits=3)
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    stage._localizer._engine._features = lambda _: TrunkMaps(torch.full((1, 3, 4, 4), -1.0), None)
    with pytest.raises(ModelError, match="feature maps below zero; leave feature_maps out"):
        stage.annotate(decoded_table([pixels.tobytes()], [None]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 10, seed=5, size_hw=(96, 128), broken=1)
    return folder / "images"


@pytest.fixture(scope="module")
def labels(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "labels"
    run_annotate(corpus, out, outputs="boxes,heatmaps,features,feature_maps", resize="fit", images_per_commit=6)
    return out


def test_a_run_stores_maps_of_which_the_networks_own_follow(corpus, labels):
    assert verify(*connect(str(labels), StorageConfig())).problems == ()
    model = load_model(AnnotateConfig.resolve({"input": str(corpus), "out": "x", "model": "camlake_demo"}))
    weights = model.network.head.linear.weight.numpy()
    with camlake.open(str(labels)) as lake:
        assert [run.settings["feature_map_bits"] for run in lake.runs] == [3]
        maps = {row["image_id"]: row for row in lake.arrow("feature_maps").to_pylist()}
        features = {row["image_id"]: row for row in lake.arrow("features").to_pylist()}
        heatmaps = lake.arrow("heatmaps").to_pylist()
    assert len(maps) == 10
    alike = []
    for row in heatmaps:
        found = camlake.feature_map(maps[row["image_id"]], features[row["image_id"]])
        assert np.allclose(found.mean((1, 2)), features[row["image_id"]]["feature"], rtol=1e-4, atol=1e-6)
        own = np.tensordot(weights[row["class_id"]], found, 1)[: row["heat_h"], : row["heat_w"]]
        alike.append(np.corrcoef(own.ravel(), camlake.heatmap(row).ravel())[0, 1])
    assert np.median(alike) > 0.995
    other = next(row for name, row in features.items() if name != heatmaps[0]["image_id"])
    with pytest.raises(ValueError, match=r"^image_id: "):
        camlake.feature_map(maps[heatmaps[0]["image_id"]], other)


def test_rows_of_other_bits_are_refused(corpus, labels):
    with pytest.raises(UsageError, match=r"^--feature-map-bits: the rows .* were made with 3, not 2"):
        run_annotate(corpus, labels, outputs="boxes,heatmaps,features,feature_maps", resize="fit", feature_map_bits=2)


@pytest.mark.parametrize(
    ("bits", "n_bytes", "said"),
    [
        (2, 9, ()),
        (3, 18, ()),
        (3, 9, (f"run {RUN}: 1 rows of feature_maps hold what can't be, such as '{image_id('a')}'",)),
        (5, 18, (f"run {RUN}: 1 rows of feature_maps hold what can't be, such as '{image_id('a')}'",)),
        (None, 0, (f"run {RUN}: 1 images don't have one row of feature maps, such as 'a'",)),
    ],
)
def test_missing_and_wrong_codes_are_found(tmp_path, bits, n_bytes, said):
    lake, rows = FakeLake(str(tmp_path / "labels")), rows_of(RUN, {"a": "v1"})
    if bits:
        found = {"image_id": image_id("a"), "run_id": RUN, "map_h": 3, "map_w": 3, "channels": 4}
        found |= {"bits": bits, "codes": bytes(n_bytes)}
        rows["feature_maps"] = pa.Table.from_pylist([found], schema=rows["feature_maps"].schema)
    settings = {"outputs": ["boxes", "heatmaps", "features", "feature_maps"]}
    manifest = manifest_of(RUN, planned=1).model_copy(update={"settings": settings})
    with Lease.acquire(lake.fs, lake.root, RUN) as lease:
        start_run(lake.fs, lake.root, manifest)
        lake.write_plan(RUN, {"a": "v1"})
        lake.commit(RUN, lease.generation, "000000", rows)
        finish_run(lake.fs, lake.root, manifest, lease.generation)
    assert verify(lake.fs, lake.root).problems == said


def test_row_groups_of_codes_are_counted_in_bytes():
    columns = {name: [1] * 7 for name in ("run_id", "map_h", "map_w", "channels", "bits")}
    rows = pa.table(
        {"image_id": list("abcdefg"), **columns, "codes": pa.array([bytes(2**23 - 100)] * 7, pa.large_binary())}
    )
    assert pq.ParquetFile(io.BytesIO(to_parquet(rows))).metadata.row_group(0).num_rows == 2
