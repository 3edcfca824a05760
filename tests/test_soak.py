"""Random kills while the store fails: nothing lost, nothing twice. ``tests.benchmarks.soak`` does more, also on Ray."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from jobs.terminal.console import Screen
from tests.benchmarks.glob_reader import GlobReader
from tests.benchmarks.soak import SoakConfig, measure


def written(folder, **quarantine):
    """Write an output with one annotated image "a", and the given rows of quarantine."""
    tables = {
        "images": {"image_id": ["a"], "n_boxes": [1]},
        "boxes": {"image_id": ["a"]},
        "features": {"image_id": ["a"]},
        "quarantine": quarantine,
    }
    for name, columns in tables.items():
        (folder / name).mkdir()
        pq.write_table(pa.table(columns), folder / name / "part-0.parquet")
    return GlobReader(LocalFileSystem(), str(folder))


@pytest.mark.parametrize(("permanent", "wrong"), [(False, []), (True, ["twice: a"])])
def test_only_an_image_that_is_rejected_for_good_may_have_no_other_row(tmp_path, permanent, wrong):
    reader = written(tmp_path, image_id=["a"], permanent=[permanent])
    reader.look()
    assert (reader.looks, reader.moved, reader.wrong) == (1, 0, wrong)


def test_a_reader_that_fails_says_so(tmp_path):
    with written(tmp_path, image_id=["a"]) as reader:
        reader._thread.join(10)
    (wrong,) = reader.wrong
    assert wrong.startswith("the reader ended: KeyError: ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_cost_nothing():
    figures = measure(SoakConfig.resolve({"count": 64, "kills": 10, "ray_kills": 0, "seed": 3}), Screen())
    assert figures["kills"] == 10
    assert figures["equal rows"]["images"] >= 2 * 63
    looks, moved = figures["looks of the globbing reader, of these at removed files"]
    assert looks > moved
