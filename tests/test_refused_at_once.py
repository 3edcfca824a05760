"""What is refused before anything heavy is imported: inputs and outputs that are not there, or can't be written."""

import os
import re
import subprocess
import sys

import pytest

from jobs.terminal.console import Screen
from jobs.terminal.dry_run import print_estimate
from pipeline.graph.annotate.driver import annotate
from pipeline.images.synthetic.scenes import write_corpus
from schemas.errors import InputError, StoreError
from schemas.options.annotate import AnnotateConfig
from tests.jobs_on import ROOT


def config(tmp_path, **options):
    given = {"input": str(tmp_path / "no-such"), "out": str(tmp_path / "out"), "weights": "no-such.safetensors"}
    return AnnotateConfig.resolve(given | options)


@pytest.mark.parametrize("run", [annotate, print_estimate])
def test_an_input_that_is_not_there(tmp_path, run):
    with pytest.raises(InputError, match=r"^no input at \S+no-such: neither a file nor a folder$"):
        run(config(tmp_path), Screen())
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_not_there(s3, tmp_path):
    url = f"s3://{s3.bucket()}/no-such"
    with pytest.raises(
        InputError,
        match=r"no input at \S+: neither a file nor a folder; to match the beginning of a name, end it with \*$",
    ):
        annotate(config(tmp_path, input=url, endpoint_url=s3.endpoint_url), Screen())


def test_an_output_below_a_file(tmp_path):
    write_corpus(tmp_path, 1, seed=1, size_hw=(48, 48))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"^--out \S+/file/out: \S+/file is no folder$"):
        annotate(config(tmp_path, input=str(tmp_path / "images"), out=str(tmp_path / "file/out")), Screen())


def test_an_output_without_permission(tmp_path, monkeypatch):
    write_corpus(tmp_path, 1, seed=1, size_hw=(48, 48))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # Root may write everywhere.
    with pytest.raises(StoreError, match=r"^--out \S+/out: no permission to write in "):
        annotate(config(tmp_path, input=str(tmp_path / "images")), Screen())


OF_NOTHING = [
    "annotate {0} --out {0}/out",
    "train {0} --out {0}/out",
    "foreground {0} --out {0}.safetensors",
    "evaluate {0} --truth truth.csv",
    "rebox {0} --out {0}/out",
    "localize {0} --head h.safetensors --out {0}/out",
    "head fit {0} --labels l.csv --out h.safetensors",
    "report {0}",
    "view {0}",
    "compact {0}",
    "verify {0} --repair",
    "sql {0} SELECT",
]


@pytest.mark.parametrize("line", OF_NOTHING)
def test_a_verb_of_nothing_loads_neither_torch_nor_ray_and_makes_nothing(tmp_path, line):
    words = line.format(tmp_path / "no-such").split()
    code = (
        "import sys; from jobs.terminal.program import make_app\n"
        f"try: make_app({words[0]!r})({words!r})\n"
        "except SystemExit as end: print(end.code, *sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    status, *loaded = ended.stdout.split()
    assert (status, "torch" in loaded, "ray" in loaded) == ("1", False, False)
    assert re.search(
        r"^camlake: (no input at )?\S+/no-such: (no camlake output here|neither a file nor a)", ended.stderr
    )
    assert list(tmp_path.iterdir()) == []
