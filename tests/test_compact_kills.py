"""``camlake compact`` that is killed, on stores, and between annotate and rebox."""

import shutil

import pytest

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader
from pipeline.storage.lake import records, whole_objects
from pipeline.storage.lake.commit import remove_leftovers
from pipeline.storage.lake.compaction import compact as compacting
from pipeline.storage.lake.compaction import merge
from pipeline.storage.lake.lease import Lease
from schemas.options.rebox import ReboxConfig
from tests.compacting import WRITTEN, compact, fill, globbed, rows
from tests.deleted import Output, gone
from tests.deleted import fill as fill_folder
from tests.fake_lake import FakeLake, problems
from tests.jobs_on import run_annotate


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        pytest.param(merge, "write_whole", 1, marks=pytest.mark.slow),
        (merge, "write_whole", 3),
        pytest.param(compacting, "write_whole", 1, marks=pytest.mark.slow),
        (compacting, "write_record", 1),
        pytest.param(whole_objects, "copy_whole", 1, marks=pytest.mark.slow),
        (whole_objects, "copy_whole", 4),
        (records, "remove_many", 1),
        pytest.param(records, "write_record", 1, marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_point_loses_nothing(output, monkeypatch, module, name, call, after):
    before, real, calls = rows(output), getattr(module, name), []

    def dies(*values, **named):
        calls.append(values)
        if len(calls) < call:
            return real(*values, **named)
        if after:
            real(*values, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dies)
        with pytest.raises(KeyboardInterrupt):
            compact(output)
    assert rows(output) == before
    output.run({"new": "v1"})
    expected = rows(output)
    assert len(expected["boxes"]) == len(before["boxes"]) + 2
    assert problems(output) == []
    compact(output)
    assert (rows(output), problems(output)) == (expected, [])
    assert {table: globbed(output, table) for table in WRITTEN} == {table: len(expected[table]) for table in WRITTEN}


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
def test_on_a_store(kind, request):
    if kind == "memory":
        lake = fill(FakeLake("memory://compact/model=x/out"))
    else:
        store = request.getfixturevalue("s3")
        lake = fill(FakeLake(f"s3://{store.bucket()}/out=1/it's *", store.storage))
    before = rows(lake)
    storage = {"endpoint_url": lake.storage.endpoint_url} if lake.storage.endpoint_url else {}
    compact(lake, **storage)
    assert (rows(lake), problems(lake)) == (before, [])
    with Lease.acquire(lake.fs, lake.root, "r"):
        assert remove_leftovers(lake.fs, lake.root) == ([], [])


@pytest.mark.slow
def test_uploads_of_a_killed_compact_are_removed_by_the_next_run(s3, monkeypatch):
    """A large merged file is an upload of several parts, of which the kill leaves some."""
    bucket = s3.bucket()
    lake = fill(FakeLake(f"s3://{bucket}/out", s3.storage))
    before = rows(lake)

    def dies(fs, path, data):
        upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=path.partition("/")[2])
        part = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"], "PartNumber": 1}
        fs.call_s3("upload_part", **part, Body=data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merge, "write_whole", dies)
        with pytest.raises(KeyboardInterrupt):
            compact(lake, endpoint_url=s3.endpoint_url)
    assert len(s3.client.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 1
    assert rows(lake) == before
    lake.run({"new": "v1"})
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=bucket)
    assert problems(lake) == []


def test_rebox_goes_on_after_a_compaction_of_its_source_and_of_its_output(output, tmp_path):
    cut = {"labels": output.out, "out": str(tmp_path / "cut"), "threshold": 0.3, "box_rule": "paper"}

    def again():
        return rebox(ReboxConfig.resolve(cut), Screen()).counts

    first = again()
    whole = rows(FakeLake(cut["out"]))
    compact(output)
    assert again().planned == 0
    compact(FakeLake(cut["out"]))
    assert again().planned == 0
    assert rows(FakeLake(cut["out"])) == whole
    output.run({"new": "v1"})
    counts = again()
    assert (counts.annotated, counts.already_done) == (1, first.annotated + first.rejected)
    assert problems(FakeLake(cut["out"])) == []


def test_a_hidden_image_is_shown_again_after_a_compaction(tmp_path):
    folder, output = fill_folder(tmp_path / "in", "a.jpg", "b.jpg"), Output(tmp_path / "out")
    output.run(folder)
    fill_folder(folder, "b.jpg", content=b"another")
    away = gone(folder / "a.jpg")
    output.run(folder, "hide")
    compact(FakeLake(output.out))
    output.check()
    assert output.shown() == ["b.jpg"]
    away.rename(folder / "a.jpg")
    assert output.run(folder).annotated == 0
    assert output.shown() == ["a.jpg", "b.jpg"]
    compact(FakeLake(output.out))
    output.check()
    assert output.shown() == ["a.jpg", "b.jpg"]


@pytest.mark.slow
def test_annotate_and_rebox_go_on_with_a_compacted_output(tmp_path):
    write_corpus(tmp_path, 12, seed=5, size_hw=(64, 64), broken=1)
    photos, labels = tmp_path / "images", tmp_path / "labels"
    run_annotate(photos, labels, images_per_commit=4)
    shutil.copytree(labels, tmp_path / "plain")
    compact(FakeLake(str(labels)))
    counts = run_annotate(photos, labels).counts
    assert (counts.planned, counts.already_done) == (0, 13)
    boxes = []
    for source in ("labels", "plain"):
        cut = {"labels": str(tmp_path / source), "out": str(tmp_path / f"{source}-30"), "threshold": 0.3}
        rebox(ReboxConfig.resolve({**cut, "box_rule": "paper"}), Screen())
        assert problems(FakeLake(cut["out"])) == []
        frame = reader.open(cut["out"]).pandas("boxes").drop(columns=["run_id", "date"])
        boxes.append(frame.sort_values(["image_id", "rank"]).to_dict("records"))
    assert boxes[0] == boxes[1]
