"""``import camlake``: what it offers, what it waits for, and ``annotate`` from Python."""

import logging
import subprocess
import sys

import camlake
import pytest

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader
from schemas import errors

OPTIONS = {"model": "camlake_demo", "actors": 1, "batch_size": 8, "topk": 2}


def test_every_name_is_there_and_is_the_same_thing_everywhere():
    assert {name: getattr(camlake, name) for name in camlake.__all__ if name in vars(errors)} == {
        name: value for name, value in vars(errors).items() if isinstance(value, type) and value is not errors.Reason
    }
    assert (camlake.open, camlake.heatmap, camlake.Lake) == (reader.open, reader.heatmap, reader.Lake)
    assert reader.CURRENT_ROWS_SQL == camlake.CURRENT_ROWS_SQL
    assert set(dir(camlake)) == set(camlake.__all__)
    with pytest.raises(AttributeError, match="'camlake' has no attribute 'opne'"):
        _ = camlake.opne


@pytest.mark.parametrize("statement", ["import camlake", "from pipeline import camlake"])
def test_the_import_alone_loads_nothing_heavy(statement):
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "duckdb", "pandas", "cv2", "pyarrow"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input": "in"}, "--out is missing"),
        ({"input": "in", "out": "o", "treshold": 0.1}, "unknown option 'treshold'; did you mean 'threshold'"),
        ({"input": "in", "out": "o", "dry_run": True}, "dry_run: allowed only on the command line"),
        ({"input": "in", "out": "o", "progress": "loud"}, "progress 'loud': allowed: 'auto', 'bar'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, said):
    with pytest.raises(camlake.UsageError, match=said):
        camlake.annotate(**options)


def test_annotate_returns_the_opened_output_and_logs_its_steps(tmp_path, caplog):
    write_corpus(tmp_path, 4, seed=3, size_hw=(64, 64), broken=1)
    where = {"input": str(tmp_path / "images"), "out": str(tmp_path / "labels")}
    with caplog.at_level(logging.INFO, "camlake"):
        done = camlake.annotate(**where, **OPTIONS, max_rejected=1.0)
    with done:
        manifest = done.runs[-1]
        assert len(done.arrow("images")) == 4
    assert (manifest.counts.annotated, manifest.counts.rejected) == (4, 1)
    assert "5 listed, 0 done, 5 to do" in [record.getMessage() for record in caplog.records if record.name == "camlake"]
    with camlake.open(where["out"]) as lake:
        assert lake.runs[-1].run_id == manifest.run_id
    with pytest.raises(camlake.RejectedShareError, match="1 of 5 inputs were rejected"):
        camlake.annotate(**where, **OPTIONS, max_rejected=0.0, retry_rejected=True)
