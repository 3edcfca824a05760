"""``camlake head top`` and ``camlake neighbours``: orders, boxes, cosines and pairs by hand, and what is refused."""

import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.head import run as head_job
from jobs.neighbours import run as neighbours_job
from jobs.terminal.console import Screen
from pipeline import camlake
from pipeline.arrays import nearest as arrays
from pipeline.outputs.heads import features as features_module
from pipeline.outputs.heads import neighbours as neighbours_module
from pipeline.outputs.heads import top, vector_index
from pipeline.outputs.heads.features import open_features
from pipeline.outputs.heads.top import by_channel, by_head, top_images, with_boxes
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.options.head import HeadConfig
from schemas.options.neighbours import NeighboursConfig
from tests.fake_lake import FakeLake, image_id
from tests.feature_lake import feature_lake, head_by_hand, maps_of, place_of

IMAGES = 12


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return feature_lake(str(tmp_path_factory.mktemp("lake") / "labels"), IMAGES)


def ordered(values):
    """Return the numbers of the pictures by descending value, then by image_id."""
    return sorted(range(IMAGES), key=lambda number: (-values[number], image_id(f"p/{number}.jpg")))


class TestTop:
    @pytest.mark.parametrize("batch_rows", [5, 4096])
    def test_a_head_ranks_images_by_probability_and_boxes_their_maps(self, lake, tmp_path, monkeypatch, batch_rows):
        monkeypatch.setattr(features_module, "BATCH_ROWS", batch_rows)
        _, head = head_by_hand(tmp_path)
        source = open_features(lake.out, StorageConfig(), None)
        ranking = by_head(head)
        ranked = with_boxes(source, ranking, top_images(source, ranking, 3))
        for class_id, some in enumerate(ranked):
            logits = [head.weight[class_id] @ maps_of(number).mean((1, 2)) - 2 for number in range(IMAGES)]
            first = ordered(logits)[:3]
            assert [one.uri for one in some] == [f"p/{number}.jpg" for number in first]
            assert [one.value for one in some] == pytest.approx([1 / (1 + np.exp(-logits[number])) for number in first])
            for number, one in zip(first, some, strict=True):
                row, column = place_of(number)
                assert np.unravel_index(one.heat.argmax(), (3, 4)) in [(row, column), (row, column + 1)]
                centre = (one.box_xyxy[0] + one.box_xyxy[2]) / 32, (one.box_xyxy[1] + one.box_xyxy[3]) / 32
                assert centre == (pytest.approx(column + 1, abs=0.4), pytest.approx(row + 0.5, abs=0.4))

    def test_a_channel_ranks_images_by_its_mean(self, lake):
        source = open_features(lake.out, StorageConfig(), None)
        ranking = by_channel(3, source)
        (some,) = top_images(source, ranking, 100)
        means = [maps_of(number)[3].mean() for number in range(IMAGES)]
        assert [one.uri for one in some] == [f"p/{number}.jpg" for number in ordered(means)]
        assert some[0].value == pytest.approx(max(means))
        with pytest.raises(UsageError, match=r"^--channel 4: allowed: 0 to 3, the features of tiny-12345678$"):
            by_channel(4, source)

    def test_more_images_than_fit_into_memory_are_refused(self, lake, tmp_path, monkeypatch):
        monkeypatch.setattr(top, "MOST_RANKED", 10)
        _, head = head_by_hand(tmp_path)
        with pytest.raises(UsageError, match=r"^--images 4: allowed: up to 3 of each of 3 classes$"):
            top_images(open_features(lake.out, StorageConfig(), None), by_head(head), 4)

    def test_ties_are_ordered_by_image_id(self, tmp_path):
        lake = FakeLake(str(tmp_path / "labels"))
        lake.run(dict.fromkeys("abcdefgh", "v1"))
        source = open_features(lake.out, StorageConfig(), None)
        (some,) = top_images(source, by_channel(0, source), 3)
        assert [one.image_id for one in some] == sorted(image_id(name) for name in "abcdefgh")[:3]

    def test_without_feature_maps_there_are_images_alone(self, tmp_path, capsys):
        lake = FakeLake(str(tmp_path / "labels"))
        lake.run({"a": "v1", "bb": "v1"})
        job = {"action": "top", "place": lake.out, "channel": 3, "out": str(tmp_path / "page.html")}
        head_job(HeadConfig.resolve(job), Screen())
        said = capsys.readouterr()
        assert "no maps and boxes: the output has no feature_maps" in said.err
        assert "2 of the pictures can't be read any more" in said.err
        assert said.out.index("bb") < said.out.rindex(" a ")
        page = (tmp_path / "page.html").read_text()
        assert "<script" not in page
        assert page.count("can't be read any more</div>") == 2

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "^camlake head top: needs one of --head and --channel$"),
            ({"head": "h", "channel": 1}, "^camlake head top: needs one of --head and --channel$"),
            ({"channel": 1, "out": "x.csv"}, "^--out x.csv: allowed: a .html file$"),
            ({"channel": 1, "labels": "x.csv"}, "^--labels: not an option of camlake head top$"),
            ({"channel": -1}, "^--channel -1: "),
        ],
    )
    def test_refusals(self, options, said):
        with pytest.raises(UsageError, match=said):
            HeadConfig.resolve({"action": "top", "place": "out", **options})


def cosines():
    """Return the cosines of all pairs of pictures."""
    vectors = np.stack([maps_of(number).mean((1, 2)) for number in range(IMAGES)]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


class TestNeighbours:
    @pytest.mark.parametrize("of", ["p/4.jpg", "4.jpg", image_id("p/4.jpg")])
    @pytest.mark.parametrize("batch_rows", [5, 4096])
    def test_the_nearest_by_hand(self, lake, monkeypatch, of, batch_rows):
        monkeypatch.setattr(features_module, "BATCH_ROWS", batch_rows)
        found = camlake.neighbours(lake.out, of, count=5)
        true = cosines()[4]
        first = [number for number in ordered(true) if number != 4][:5]
        assert found["uri"].to_pylist() == [f"p/{number}.jpg" for number in first]
        assert found["cosine"].to_pylist() == pytest.approx(true[first], abs=1e-6)

    def test_all_near_duplicates_by_hand(self, lake, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(arrays, "BLOCK_ROWS", 5)
        monkeypatch.setattr(neighbours_module, "MEMORY_BYTES", 100)
        table = str(tmp_path / "pairs.csv")
        options = {"out": lake.out, "duplicates": True, "least": 0.99, "table": table}
        neighbours_job(NeighboursConfig.resolve(options), Screen())
        assert "12 vectors of 4 values, 0 MB in a temporary file" in capsys.readouterr().err
        found = pd.read_csv(table)
        true = cosines()
        close = np.argwhere(np.triu(true >= 0.99, 1)).tolist()
        pairs = set(zip(found["uri"], found["other_uri"], strict=True))
        assert {frozenset(pair) for pair in pairs} == {frozenset((f"p/{i}.jpg", f"p/{j}.jpg")) for i, j in close}
        assert len(found) == len(close) > 3
        for uri, group in zip(found["uri"], found["group"], strict=True):
            same = found[found["group"] == group]
            assert {int(one[2:-4]) % 3 for one in [*same["uri"], *same["other_uri"]]} == {int(uri[2:-4]) % 3}
        in_memory = camlake.near_duplicates(lake.out, 0.99).to_pandas()
        assert in_memory["uri"].tolist() == found["uri"].tolist()
        monkeypatch.setattr(neighbours_module, "MOST_IMAGES", 3)
        monkeypatch.setattr("pipeline.outputs.heads.vector_index.BLOCK_ROWS", 11)  # The last block has a single row.
        indexed = camlake.near_duplicates(lake.out, 0.99, index=True).to_pandas()
        assert indexed.drop(columns="cosine").equals(in_memory.drop(columns="cosine"))
        assert indexed["cosine"].tolist() == pytest.approx(in_memory["cosine"].tolist(), abs=1e-6)
        monkeypatch.setattr(vector_index, "BLOCK_ROWS", IMAGES - 1)
        assert len(camlake.near_duplicates(lake.out, 0.99, index=True)) == len(found), "the last block has one row"
        monkeypatch.setitem(sys.modules, "usearch.index", None)
        with pytest.raises(UsageError, match=r"^--index: needs usearch; pip install 'camlake\[index\]'$"):
            camlake.near_duplicates(lake.out, index=True)

    def test_too_many_are_refused(self, lake, monkeypatch):
        monkeypatch.setattr(neighbours_module, "MOST_PAIRS", 3)
        with pytest.raises(UsageError, match=r"^--least 0.1: more than 3 pairs; give a greater one$"):
            camlake.near_duplicates(lake.out, 0.1)
        monkeypatch.setattr(neighbours_module, "MOST_IMAGES", 3)
        monkeypatch.setattr("pipeline.outputs.heads.vector_index.BLOCK_ROWS", 11)  # The last block has a single row.
        with pytest.raises(UsageError, match=r"^--duplicates: 12 images; allowed: up to 3, all pairs"):
            camlake.near_duplicates(lake.out)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "^camlake neighbours: needs one of --of and --duplicates$"),
            ({"of": "a", "duplicates": True}, "^camlake neighbours: needs one of --of and --duplicates$"),
            ({"of": "a", "least": 0.5}, "^--least: not an option with --of$"),
            ({"of": "a", "index": True}, "^--index: not an option with --of$"),
            ({"duplicates": True, "count": 5}, "^--count: not an option with --duplicates$"),
            ({"of": "a", "table": "x.txt"}, "^--table x.txt: allowed: a .parquet or .csv file$"),
        ],
    )
    def test_options(self, options, said):
        with pytest.raises(UsageError, match=said):
            NeighboursConfig.resolve({"out": "out", **options})

    def test_names_of_no_image_and_of_several(self, tmp_path):
        lake = FakeLake(str(tmp_path / "labels"))
        lake.run({"a/x.jpg": "v1", "b/x.jpg": "v1"})
        with pytest.raises(UsageError, match=r"^--of 'x.jpg': several images end so, like a/x.jpg and b/x.jpg; give"):
            camlake.neighbours(lake.out, "x.jpg")
        with pytest.raises(UsageError, match=r"^--of 'y.jpg': no image of "):
            camlake.neighbours(lake.out, "y.jpg")


@given(st.integers(0, 30), st.integers(1, 7), st.data())
@settings(max_examples=60)
def test_groups_are_connected_components(n_rows, block, data):
    pairs = data.draw(st.lists(st.tuples(st.integers(0, max(0, n_rows - 1)), st.integers(0, max(0, n_rows - 1)))))
    pairs = [pair for pair in pairs if n_rows]
    i, j = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    found = arrays.groups(n_rows, i, j)
    names = list(range(n_rows))
    for _ in range(n_rows):
        for one, other in pairs:
            names[one] = names[other] = min(names[one], names[other])
    assert found.tolist() == names


def test_vectors_of_zeros_are_near_to_nothing():
    rows = arrays.units(np.array([[0, 0], [3, 4], [6, 8], [0, 0]], np.float32))
    i, j, cosine = (np.concatenate(column) for column in zip(*arrays.close_pairs(rows, 0.5), strict=True))
    assert (i.tolist(), j.tolist()) == ([1], [2])
    assert cosine == pytest.approx([1])


def test_equal_vectors_have_the_cosine_one():
    """In float32 the product of a unit with itself is often below 1."""
    rows = arrays.units(np.random.default_rng(0).normal(size=(200, 1280)).astype(np.float32))
    i, j, _ = (
        np.concatenate(column) for column in zip(*arrays.close_pairs(np.repeat(rows, 2, axis=0), 1.0), strict=True)
    )
    assert i.tolist() == list(range(0, 400, 2))
    assert j.tolist() == list(range(1, 400, 2))
