"""After hundreds of runs the documents of all of them cost the start of a run little: each is parsed once."""

import json

import pytest

from pipeline.storage.lake import records
from pipeline.storage.lake.records import load_runs
from schemas.errors import StoreError
from schemas.runs import DataFile, RunManifest
from tests.benchmarks.many_runs import synthetic_output


@pytest.fixture
def parsed(monkeypatch):
    """The documents that were parsed, in order; none is kept at first."""
    found, parse = [], records.parse_record

    def counted(kind, data, path):
        found.append(kind.__name__)
        return parse(kind, data, path)

    monkeypatch.setattr(records, "parse_record", counted)
    monkeypatch.setattr(records, "_PARSED", records._ParsedManifests())
    return found


def test_a_manifest_is_parsed_once_and_again_when_it_changes(local, parsed):
    first = local.run({"s3://b/1.jpg": "v1"})
    local.run({"s3://b/2.jpg": "v1"}, open_inputs=["s3://b/3.jpg"], finish=False)
    parsed.clear()
    runs = load_runs(local.fs, local.root)
    assert parsed == ["RunManifest", "CommitRecord"], "the finished run was known, and commit records are read anew"
    parsed.clear()
    assert load_runs(local.fs, local.root) == runs
    assert parsed == ["CommitRecord"]
    path = local.path(f"_runs/{first.run_id}/manifest.json")
    changed = json.loads(local.fs.cat_file(path)) | {"date": "2026-12-01"}
    local.fs.pipe_file(path, json.dumps(changed).encode())
    assert [run.date for run in load_runs(local.fs, local.root)] == ["2026-12-01", runs[1].date]
    local.fs.pipe_file(path, b"{")
    for _ in range(2):
        with pytest.raises(StoreError, match="is no RunManifest"):
            load_runs(local.fs, local.root)


def test_what_is_kept_has_a_bound(local, parsed, monkeypatch):
    written = synthetic_output(local, runs=6, files=10)
    monkeypatch.setattr(records._PARSED, "MOST_BYTES", written // 2)
    runs = load_runs(local.fs, local.root)
    assert [len(run.files) for run in runs] == [10] * 6
    assert 2 <= len(records._PARSED._kept) <= 3
    assert records._PARSED._bytes <= written // 2
    assert load_runs(local.fs, local.root) == runs
    assert len(parsed) == 12, "the oldest are dropped first, so that a look at all of them finds none"


def test_a_data_file_is_small_and_reads_newer_documents():
    file = DataFile("images", "images/x.parquet", 1, 2)
    assert not hasattr(file, "__dict__")
    with pytest.raises(AttributeError):
        file.rows = 3
    newer = {"table": "t", "path": "p", "rows": 1, "size_bytes": 2, "digest": None, "later": "ignored"}
    assert RunManifest.model_fields["files"].annotation == tuple[DataFile, ...]
    assert records.CommitRecord.model_validate(
        {"run_id": "r", "task": "0", "images": 1, "rejected": 0, "files": [newer]}
    ).files == (DataFile("t", "p", 1, 2),)
