"""verify compares an output with its input, repairs it, and accepts the output of an interrupted run."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.terminal.console import Screen
from jobs.verify import run as verify_job
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.commit import remove_leftovers
from pipeline.storage.lake.encoding import to_parquet
from pipeline.storage.lake.integrity.verify import compare_input
from pipeline.storage.lake.lease import Lease
from schemas.errors import StoreError
from schemas.options.config import StorageConfig
from schemas.options.reading import VerifyConfig
from schemas.reasons import Reason
from schemas.tables import PLAN
from tests.fake_lake import file_of, problems, rows_of, version
from tests.jobs_on import run_annotate


def listed(versions) -> list[pa.RecordBatch]:
    """Return a listing of uri → etag."""
    rows = [version(uri, etag) | {"path": uri} for uri, etag in versions.items()]
    return pa.Table.from_pylist(rows, schema=PLAN).to_batches()


def test_what_came_changed_and_went_in_the_input(lake):
    lake.run({"a": "v1", "b": "v1", "c": "v1"}, {"bad": Reason.EMPTY})
    same = compare_input(lake.fs, lake.root, listed({"a": "v1", "b": "v1", "c": "v1", "bad": "v1"}))
    assert (same.problems, same.facts) == ((), facts(now=4, gone=0))
    report = compare_input(lake.fs, lake.root, listed({"a": "v2", "b": "v1", "bad": "v1", "new": "v1"}))
    assert report.problems == (
        "1 inputs are not in the output, such as 'new': annotate again",
        "1 inputs changed since they were annotated, such as 'a': annotate again",
    )
    assert report.facts == facts(now=4, gone=1)
    assert compare_input(lake.fs, lake.root, []).facts == facts(now=0, gone=4)


def facts(now, gone, unknown=0):
    return {
        "inputs listed now": now,
        "inputs without a version, which each run annotates anew": unknown,
        "inputs gone since": gone,
    }


def test_an_input_whose_version_nobody_knows_has_not_changed(tmp_path, capsys):
    """A row of a manifest that is not there, or whose server says nothing of versions, stands in quarantine."""
    write_corpus(tmp_path, 1, seed=1, size_hw=(48, 48))
    image = min((tmp_path / "images").iterdir())
    manifest, out = tmp_path / "manifest.csv", str(tmp_path / "out")
    manifest.write_text(f"uri\n{image}\n{tmp_path}/gone.jpg\n")
    run_annotate(str(manifest), out, max_rejected=1.0)
    verify_job(VerifyConfig.resolve({"out": out, "input": str(manifest)}), Screen())
    assert "complete" in capsys.readouterr().out
    fs, root = connect(out, StorageConfig())
    compared = compare_input(fs, root, list_inputs(str(manifest), StorageConfig()).batches)
    assert (compared.problems, compared.facts) == ((), facts(now=2, gone=0, unknown=1))
    image.unlink()
    (problem,) = compare_input(fs, root, list_inputs(str(manifest), StorageConfig()).batches).problems
    assert problem.startswith("1 inputs changed since they were annotated, such as '")


def test_the_verb_compares_repairs_and_says_what_remains(local, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    run = local.run({"a": "v1"})
    (pictures / "new.jpg").write_bytes(b"some bytes")
    with pytest.raises(StoreError, match="1 problems"):
        verify_job(VerifyConfig.resolve({"out": local.out, "input": str(pictures)}), Screen())
    assert "1 inputs are not in the output, such as" in capsys.readouterr().out
    local.fs.rm_file(local.path(file_of(run, "boxes").path))
    with pytest.raises(StoreError, match="problems"):
        verify_job(VerifyConfig.resolve({"out": local.out, "repair": True}), Screen())
    said = capsys.readouterr().out
    assert "repaired: commit 000000" in said
    assert "left 1 inputs unfinished, such as 'a': annotate again" in said
    local.run({"a": "v1"})
    verify_job(VerifyConfig.resolve({"out": local.out}), Screen())


def test_an_interrupted_output_is_sound_after_the_leftovers_are_removed(local):
    dead = local.run({"a": "v1", "b": "v1"}, tasks=2, finish=False)
    local.fs.rm_file(local.path(f"_runs/{dead.run_id}/commits/000001.json"))
    assert sum("no run committed this file; the next run removes it" in line for line in problems(local)) == 4
    with Lease.acquire(local.fs, local.root, "next"):
        remove_leftovers(local.fs, local.root)
    assert ["left 1 inputs unfinished" in line for line in problems(local)] == [True]
    local.run({"b": "v1"})
    assert problems(local) == []
    with pq.ParquetFile(io.BytesIO(to_parquet(rows_of("r", {"a": "v1"})["images"]))) as file:
        assert file.metadata.num_rows == 1
