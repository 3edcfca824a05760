"""The simulations' own parts: the network in the real graph, the figures of ``host``, the store against S3's rules."""

import pyarrow as pa
import pytest
import torch

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import CamlakeError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from tests.benchmarks import host
from tests.benchmarks.cpu_by_role import DRIVER
from tests.benchmarks.fake_network import FakeGpu
from tests.benchmarks.fake_store import BUCKET, FOLDER_OBJECTS, Keys, StoreSpec, fake_store, list_page
from tests.benchmarks.simulation import Steady, simulate

BODY = b"0123456789"


def test_the_simulated_network_goes_through_the_real_graph(ray_session, tmp_path):
    write_corpus(tmp_path, 40, seed=1, size_hw=(48, 48), broken=1)
    gpu = FakeGpu(images_per_s=400, image_size=32, channels=8, classes=10)
    out = tmp_path / "out"
    config = AnnotateConfig(input=str(tmp_path / "images"), out=str(out), image_size=32, actors=1, topk=2, batch_size=8)
    run = simulate(config, gpu, block=8)
    assert (run.manifest.counts.annotated, run.manifest.counts.rejected, run.blocks) == (40, 1, 6)
    assert verify(*connect(str(out), StorageConfig())).problems == ()
    with camlake.open(str(out)) as lake:
        assert len(lake.arrow("features")["feature"][0]) == 8
        heatmaps = lake.arrow("heatmaps")
        assert set(zip(heatmaps["heat_h"].to_pylist(), heatmaps["heat_w"].to_pylist(), strict=True)) == {(7, 7)}
        assert set(lake.arrow("boxes")["rank"].to_pylist()) == {0, 1}


def test_the_host_s_thread_and_the_tally_are_measured(ray_session, monkeypatch):
    for name, value in (("HOST_ROUNDS", 1), ("TALLY_CALLS", 3), ("GPU_BATCH", 8)):
        monkeypatch.setattr(host, name, value)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    figures = host.host_thread(1) | host.tally()
    parts = ("annotate stage, one chunk", "pickling the rows", "boxes of all maps", "boxes of one map")
    stage, pickling, all_maps, one_map = (figures[f"ms a batch of 8: {part}"]["min"] for part in parts)
    host_ms = stage + pickling - (all_maps - one_map)
    assert figures["images/s of one actor's host thread, one chunk a batch"] == pytest.approx(8e3 / host_ms)
    assert figures["tally: images/s in batches of 8"] == 8 * figures["tally: tables/s"]


def test_the_driver_s_cost_of_a_block_is_what_it_costs_beyond_its_idle_share():
    def steady(blocks, seconds):
        return Steady(0, blocks, seconds, {DRIVER: 0.1 * seconds + 0.006 * blocks})

    figures = host.driver(steady(10, 5), steady(100, 5), 512)
    assert list(figures.values()) == [pytest.approx(0.1), pytest.approx(6), pytest.approx(512 * 0.9 / 0.006)]
    with pytest.raises(CamlakeError, match="a larger --count"):
        host.driver(steady(100, 5), steady(10, 5), 512)


@pytest.fixture(scope="module")
def store():
    """A simulated store of three folders, the last one not full."""
    with fake_store(StoreSpec(2 * FOLDER_OBJECTS + 345), BODY) as endpoint:
        yield StorageConfig(endpoint_url=endpoint, anonymous=True)


@pytest.fixture
def s3(store):
    """An s3fs of the simulated store."""
    return connect(f"s3://{BUCKET}", store, anonymous=True)[0]


def test_the_store_lists_every_key_once_and_in_order(store, s3):
    keys = [f"{BUCKET}/{key}" for key in Keys(2 * FOLDER_OBJECTS + 345)]
    assert keys == sorted(set(keys))
    assert sorted(s3.find(BUCKET)) == keys
    folders = s3.ls(f"{BUCKET}/photos")
    assert folders == [f"{BUCKET}/photos/{number:06d}" for number in range(3)]
    assert [len(s3.ls(folder)) for folder in folders] == [FOLDER_OBJECTS, FOLDER_OBJECTS, 345]
    listed = [row for batch in list_inputs(f"s3://{BUCKET}/photos/", store).batches for row in batch.to_pylist()]
    assert sorted(row["path"] for row in listed) == keys
    assert {(row["etag"], row["size_bytes"]) for row in listed} == {("781e5e245d69b566979b86e28d23f2c7", 10)}


@pytest.mark.parametrize("most", [1, 7, 1000])
@pytest.mark.parametrize("delimiter", ["", "/"])
@pytest.mark.parametrize("prefix", ["", "photos", "photos/", "photos/000001/00000010", "q"])
def test_pages_together_are_what_a_whole_listing_gives(prefix, delimiter, most):
    keys = ["a/1", *Keys(FOLDER_OBJECTS + 25)[FOLDER_OBJECTS - 10 :], "photos.txt", "z"]
    keys.sort()
    names = {}
    for key in keys:
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            rolled = bool(delimiter) and delimiter in rest
            names[prefix + rest.split(delimiter)[0] + delimiter if rolled else key] = rolled
    found, start = {}, 0
    while start is not None:
        page = list_page(keys, start, prefix, delimiter, most)
        assert len(page.keys) + len(page.prefixes) <= most
        found |= dict.fromkeys(page.keys, False) | dict.fromkeys(page.prefixes, True)
        start = page.next_index
    assert found == names


def test_a_listing_can_begin_after_any_name(s3):
    def after(name):
        page = s3.call_s3("list_objects_v2", Bucket=BUCKET, Prefix="photos/", StartAfter=name, MaxKeys=2)
        return [item["Key"] for item in page.get("Contents", [])]

    keys = Keys(2 * FOLDER_OBJECTS + 345)
    assert after(keys[998]) == [keys[999], keys[1000]]
    assert after("photos/000001/") == [keys[1000], keys[1001]]
    assert after("photos/zzz") == []


def test_the_store_gives_objects_whole_and_in_parts(store, s3):
    path = f"{BUCKET}/{Keys(2)[1]}"
    assert s3.cat_file(path) == BODY
    assert s3.cat_file(path, start=2, end=5) == b"234"
    assert s3.info(path)["size"] == 10
    assert not s3.exists(f"{BUCKET}/photos/000009/0000009999.jpg")
    plan = pa.Table.from_batches(list_inputs(f"s3://{BUCKET}/photos/000002/", store).batches)
    assert Fetcher(store, max_bytes=100).fetch(plan) == [BODY] * 345
