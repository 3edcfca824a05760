"""From a listing and what is done to slices of a plan, against hand-worked cases and a plain Python reference."""

import tracemalloc
from collections.abc import Iterator
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import Listing, image_id, list_inputs
from pipeline.storage.lake.plan.planning import SLICES_PER_FILE, PlanSlice, make_plan, read_plan_slice
from schemas.errors import InputError, StoreError
from tests.listings import LOCAL
from tests.plans import DAY, batch_of, done_of, listing_of, named, plan_of, planned, uris


def test_rows_arrive_as_they_were_listed(tmp_path):
    weird = {"uri": "s3://b/ü\n'#\"?%x.jpg", "etag": "e", "size_bytes": 2**40, "path": "b/x", "offset": 7}
    missing = {"uri": "m#row=1", "size_bytes": None, "modified_at": None, "reason_code": "missing_uri", "detail": "d"}
    exact = {"uri": "y", "modified_at": DAY + timedelta(microseconds=1)}
    plan = plan_of(tmp_path, listing_of([weird, missing], [exact]))
    assert planned(tmp_path, plan) == batch_of([weird, missing, exact]).to_pylist()
    assert plan.counts.model_dump(exclude_defaults=True) == {
        "listed": 3,
        "skipped_files": 2,
        "skipped_by_kind": {".txt": 2},
        "planned": 3,
    }


def test_slices_are_row_groups_of_files_of_16(tmp_path):
    plan = plan_of(tmp_path, listing_of(named(*map(str, range(90)))), rows_per_slice=2)
    assert len(plan.slices) == 45
    assert [one.row_group for one in plan.slices[:SLICES_PER_FILE]] == list(range(16))
    assert plan.slices[16].file == "_runs/r/plan/part-00001.parquet"
    assert pq.ParquetFile(tmp_path / "out" / plan.slices[0].file).num_row_groups == 16
    assert uris(tmp_path, plan) == list(map(str, range(90)))


@pytest.mark.parametrize(
    ("starts", "done", "sizes"),
    [
        ([0, 3, 6, 9], [], [3, 3, 3, 1]),
        ([0, 5], [], [5, 5]),
        ([0], [], [6, 4]),
        ([0, 1, 2, 9], [], [2, 6, 2]),
        ([0, 3, 6, 9], [1, 2, 3], [3, 3, 1]),
        ([0, 3, 6, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8], [1]),
    ],
)
def test_slices_do_not_cut_row_groups(tmp_path, monkeypatch, starts, done, sizes):
    """Slices of two, of ten rows; ``starts`` are the first rows of row groups, of which six rows are the most."""
    monkeypatch.setattr("pipeline.storage.lake.plan.planning.MAX_CHUNK_ROWS", 6)
    listing = listing_of(named(*map(str, range(10))))
    listing.chunk_starts.extend(starts)
    plan = plan_of(tmp_path, listing, done_of(*named(*map(str, done))), rows_per_slice=2)
    assert [one.rows for one in plan.slices] == sizes
    assert uris(tmp_path, plan) == [str(number) for number in range(10) if number not in done]


def test_the_number_of_inputs_may_choose_the_slice(tmp_path):
    plan = plan_of(tmp_path, listing_of(named("a", "b", "c")), rows_per_slice=lambda count: count - 1)
    assert [one.rows for one in plan.slices] == [2, 1]


def test_duplicates_count_once_and_the_first_one_stays(tmp_path):
    rows = [{"uri": "a", "size_bytes": 1}, {"uri": "b"}, {"uri": "a", "size_bytes": 2}]
    plan = plan_of(tmp_path, listing_of(rows, named("b")))
    assert [(row["uri"], row["size_bytes"]) for row in planned(tmp_path, plan)] == [("a", 1), ("b", 1)]
    assert (plan.counts.listed, plan.counts.duplicates, plan.counts.planned) == (2, 2, 2)


def test_of_members_with_one_name_the_last_one_counts(tmp_path):
    members = [{"uri": "s.tar#a", "path": "s.tar", "offset": at} for at in (512, 1536, 2560)]
    plan = plan_of(tmp_path, listing_of(members))
    assert [row["offset"] for row in planned(tmp_path, plan)] == [2560]
    assert (plan.counts.listed, plan.counts.duplicates) == (1, 2)


LATER = DAY + timedelta(microseconds=1)
UNKNOWN = {"size_bytes": None, "modified_at": None}


@pytest.mark.parametrize(
    ("now", "then", "is_done"),
    [
        ({"etag": "1"}, {"etag": "1"}, True),
        ({"etag": "1"}, {"etag": "2"}, False),
        ({"etag": "1", "size_bytes": 5, "modified_at": LATER}, {"etag": "1"}, True),
        ({"etag": "1"}, {"etag": None}, True),
        ({"etag": None}, {"etag": "1", "size_bytes": 2}, False),
        ({}, {}, True),
        ({"size_bytes": 2}, {}, False),
        ({"modified_at": LATER}, {}, False),
        ({"size_bytes": None}, {"size_bytes": None}, True),
        (UNKNOWN, UNKNOWN, False),
        ({**UNKNOWN, "reason_code": "missing_uri"}, UNKNOWN, True),
        ({"modified_at": None}, {}, False),
    ],
)
def test_done_means_the_same_version(tmp_path, now, then, is_done):
    plan = plan_of(tmp_path, listing_of([{"uri": "a", **now}, {"uri": "b"}]), done_of({"uri": "a", **then}))
    assert uris(tmp_path, plan) == (["b"] if is_done else ["a", "b"])
    assert (plan.counts.already_done, plan.counts.planned) == (int(is_done), 2 - is_done)


def test_nothing_to_do_writes_nothing(tmp_path):
    plan = plan_of(
        tmp_path, listing_of(named("a")), done_of({"uri": "a"}), rows_per_slice=lambda count: 1 // count
    )  # not asked
    assert plan.slices == ()
    assert not (tmp_path / "out").exists()


def test_limit_caps_what_is_considered_so_that_a_second_run_does_nothing(tmp_path):
    inputs = named("d", "b", "c", "a")
    first = plan_of(tmp_path, listing_of(inputs), limit=2)
    assert uris(tmp_path, first) == ["d", "b"]
    assert (first.counts.listed, first.counts.left_out, first.counts.planned) == (4, 2, 2)
    second = plan_of(tmp_path, listing_of(inputs), done_of(*named("d", "b")), limit=2)
    assert (second.counts.left_out, second.counts.already_done, second.counts.planned) == (2, 2, 0)


def test_a_folder_is_sorted_by_path_whatever_order_its_store_has(tmp_path):
    plan = plan_of(tmp_path, listing_of(named("d", "b"), named("c", "a"), ordered=False), limit=3)
    assert uris(tmp_path, plan) == ["a", "b", "c"]


def test_a_sample_is_a_share_that_never_changes(tmp_path):
    names = [f"{number}.jpg" for number in range(2000)]
    small = set(uris(tmp_path, plan_of(tmp_path, listing_of(named(*names)), sample=0.25)))
    large = set(uris(tmp_path, plan_of(tmp_path, listing_of(named(*reversed(names))), sample=0.5)))
    assert small < large
    assert small == {name for name in names if int(image_id(name)[:16], 16) < 2**62}
    assert 400 < len(small) < 600
    plan = plan_of(tmp_path, listing_of(named(*names)), sample=0.25, limit=10)
    assert (plan.counts.listed, plan.counts.left_out, plan.counts.planned) == (2000, 1990, 10)


OBJECTS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([None, "1", "2"]), st.integers(0, 1)), max_size=12
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    OBJECTS, st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.sampled_from([None, "1"]), st.integers(0, 1)))
)
def test_the_account_always_adds_up(tmp_path, inputs, done):
    plan = plan_of(
        tmp_path,
        listing_of([{"uri": uri, "etag": etag, "size_bytes": size} for uri, etag, size in inputs]),
        done_of(*({"uri": uri, "etag": etag, "size_bytes": size} for uri, (etag, size) in done.items())),
        rows_per_slice=3,
    )
    firsts: dict[str, tuple] = {}
    for uri, etag, size in inputs:
        firsts.setdefault(uri, (etag, size))

    def is_done(uri: str) -> bool:
        (etag, size), (old_etag, old_size) = firsts[uri], done.get(uri, ("no", -1))
        return uri in done and (etag == old_etag if etag and old_etag else size == old_size)

    assert uris(tmp_path, plan) == [uri for uri in firsts if not is_done(uri)]
    counts = plan.counts
    assert counts.listed + counts.duplicates == len(inputs)
    assert counts.listed == counts.already_done + counts.planned


def test_a_failing_listing_keeps_its_error(tmp_path):
    def fail() -> Iterator[pa.RecordBatch]:
        yield batch_of(named("a"))
        raise InputError("gone")

    with pytest.raises(InputError, match=r"^gone$"):
        plan_of(tmp_path, Listing("manifest", fail(), True))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.inputs.listing.BATCH_ROWS", 200)
    monkeypatch.setattr("pipeline.storage.inputs.entries._STAT_CHUNK", 200)
    monkeypatch.setattr("pipeline.storage.lake.plan.planning._READ_ROWS", 200)
    monkeypatch.setattr("pipeline.storage.lake.plan.planning.SLICES_PER_FILE", 4)

    def peak(count: int) -> int:
        manifest = tmp_path / f"{count}.jsonl"
        lines = (f'{{"uri": "s3://b/{number:08d}.jpg", "etag": "{number}"}}\n' for number in range(count))
        manifest.write_text("".join(lines))
        tracemalloc.start()
        plan = plan_of(tmp_path, list_inputs(str(manifest), LOCAL), rows_per_slice=200)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert plan.counts.planned == count
        return highest

    peak(100)
    # What the writing threads hold at a time is chance; what grows with the images would be four times as much.
    assert peak(20_000) < 2 * peak(5_000)


def test_a_plan_on_s3(s3, monkeypatch):
    bucket = s3.bucket()
    fs, root = connect(f"s3://{bucket}/out", s3.storage)
    plan = make_plan(listing_of(named("a", "b", "c")), (), fs, root, "_runs/r/plan", rows_per_slice=2)
    assert s3.keys(bucket) == ["out/_runs/r/plan/part-00000.parquet"]
    calls: list[str] = []
    call = S3FileSystem._call_s3

    def counted(self: S3FileSystem, method: str, *args, **kwargs):
        calls.append(method)
        return call(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    assert read_plan_slice(fs, root, plan.slices[1])["uri"].to_pylist() == ["c"]
    assert calls == ["get_object"]
    with pytest.raises(StoreError, match=r"can't read the plan .*part-00009\.parquet: not found"):
        read_plan_slice(fs, root, PlanSlice("_runs/r/plan/part-00009.parquet", 0, 1))
