"""What is refused before anything heavy is imported: inputs and outputs that are not there, or can't be written."""

import os
import re
import subprocess
import sys

import pytest

from jobs.terminal.console import Screen
from jobs.terminal.dry_run import print_estimate
from jobs.terminal.program import make_app
from jobs.verify import run as verify
from pipeline.annotate.input_plan import refuse_at_once
from pipeline.graph.annotate.driver import annotate
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.storage.filesystems import refuse_missing_files
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.records import refuse_no_output
from schemas.errors import InputError, StoreError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.options.reading import VerifyConfig
from tests.jobs_on import ROOT
from tests.scoring import example

HEAVY = {"torch", "torchvision", "ray", "duckdb", "pandas", "cv2", "sklearn", "matplotlib"}


def config(tmp_path, **options):
    given = {"input": str(tmp_path / "no-such"), "out": str(tmp_path / "out"), "weights": "no-such.safetensors"}
    return AnnotateConfig.resolve(given | options)


def test_an_input_without_an_image(tmp_path):
    """Nothing that a network needs has been looked at: the weights are not there either."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("no image")
    with pytest.raises(
        InputError, match=r"^no images at \S+/notes: only 1 .txt files; a manifest must be named itself$"
    ):
        annotate(config(tmp_path, input=str(tmp_path / "notes")), Screen())
    with pytest.raises(UsageError, match=r"^--uri-column 'x': allowed with a manifest; \S+ is read as folder$"):
        annotate(config(tmp_path, input=str(ROOT / "tests/fixtures/output_0_1/pictures"), uri_column="x"), Screen())
    assert not (tmp_path / "out").exists()


def test_cells_that_semicolons_separate(tmp_path):
    (tmp_path / "rows.csv").write_text("photo;label\na.jpg;cat\n")
    said = r"it has photo;label; .*; its cells seem to be separated by semicolons, allowed: commas$"
    with pytest.raises(InputError, match=said):
        next(list_inputs(str(tmp_path / "rows.csv"), StorageConfig()).batches)


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


def test_an_output_below_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    write_corpus(tmp_path, 1, seed=1, size_hw=(48, 48))

    def refuse(path, **_):
        if str(path).startswith(f"{tmp_path}/private/"):
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path)

    lstat = os.lstat
    (tmp_path / "private").mkdir()
    monkeypatch.setattr(os, "lstat", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "private"))
    with pytest.raises(StoreError, match=r"^--out \S+/out: no permission to write in \S+/private$"):
        refuse_at_once(config(tmp_path, input=str(tmp_path / "images"), out=str(tmp_path / "private/labels/out")))


def test_an_output_without_permission(tmp_path, monkeypatch):
    write_corpus(tmp_path, 1, seed=1, size_hw=(48, 48))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # Root may write everywhere.
    with pytest.raises(StoreError, match=r"^--out \S+/out: no permission to write in "):
        annotate(config(tmp_path, input=str(tmp_path / "images")), Screen())


OF_NOTHING = {
    "annotate {0} --out {0}/out": HEAVY - {"duckdb"},
    "train {0} --out {0}/out": HEAVY,
    "foreground {0} --out {0}.safetensors": HEAVY,
    "evaluate {0} --truth {1}": HEAVY,
    "rebox {0} --out {0}/out": HEAVY,
    "localize {0} --head {1} --out {0}/out": HEAVY,
    "head fit {0} --labels {1} --out h.safetensors": HEAVY,
    "head top {0} --channel 1": HEAVY,
    "neighbours {0} --of x": HEAVY,
    "export {0} {0}-coco --to coco": HEAVY,
    "publish {0} --catalog c --table a.b": HEAVY,
    "report {0}": HEAVY,
    "view {0}": HEAVY,
    "compact {0}": HEAVY,
    "verify {0} --repair": HEAVY,
    "sql {0} SELECT": HEAVY,
}
"""Commands on what is not there, and what they must not have imported when they end."""


@pytest.mark.parametrize("line", OF_NOTHING)
def test_a_verb_of_nothing_imports_nothing_heavy_and_makes_nothing(tmp_path, line):
    said, loaded = said_and_loaded(line.format(tmp_path / "no-such", ROOT / "README.md").split())
    assert not OF_NOTHING[line] & loaded
    assert re.search(r"^camlake: (no input at )?\S+/no-such: (no camlake output here|neither a file nor a)", said)
    assert list(tmp_path.iterdir()) == []


def said_and_loaded(words):
    """Run a command that fails with status 1; return what it said and the modules that it had imported."""
    code = (
        "import sys; from jobs.terminal.program import make_app\n"
        f"try: make_app({words[0]!r})({words!r})\n"
        "except SystemExit as end: print(end.code, *sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    status, *loaded = ended.stdout.split()
    assert status == "1"
    return ended.stderr, set(loaded)


FILES = {
    "annotate {0} --out {1} --dry-run": "weights labels head classes calibration foreground cluster prices",
    "rebox {0} --out {1}": "classes calibration foreground",
    "localize {0} --out {1} --head README.md": "head classes calibration foreground",
    "evaluate {0} --truth README.md": "truth masks labels",
    "report {0}": "truth",
    "head fit {0} --out {1}.safetensors": "labels",
    "head apply {0} --out {1}.csv": "head",
    "export {0} {1} --to coco": "rename",
    "train {0} --out {1} --supervision boxes": "boxes val labels weights",
    "foreground {0} --out {1}.safetensors": "weights labels truth",
}
"""The options that name a file or folder to read."""


@pytest.mark.parametrize(("line", "name"), [(line, name) for line, names in FILES.items() for name in names.split()])
def test_a_file_that_an_option_names_and_that_is_not_there(tmp_path, capsys, line, name):
    write_corpus(tmp_path, 1, seed=1, size_hw=(48, 48))
    words = [*line.format(tmp_path / "images", tmp_path / "out").split(), f"--{name}", f"{tmp_path}/no-such.csv"]
    with pytest.raises(SystemExit, match="1"):
        make_app(words[0])(words)
    assert capsys.readouterr().err == f"camlake: --{name} {tmp_path}/no-such.csv: not found\n"
    assert not (tmp_path / "out").exists()


OUTS = {
    "rebox {0} --out {1}": "--out",
    "localize {0} --out {1} --head README.md": "--out",
    "train {0} --out {1}": "--out",
    "export {0} {1} --to coco": "DEST",
    "evaluate {0} --truth README.md --report {1}": "--report",
}
"""The folders that verbs write, by the option that names them."""


@pytest.mark.parametrize("line", OUTS)
def test_a_folder_to_write_that_is_a_file(tmp_path, capsys, line):
    example().write(str(tmp_path / "labels"))
    (tmp_path / "file").touch()
    words = line.format(tmp_path / "labels", tmp_path / "file").split()
    with pytest.raises(SystemExit, match="1"):
        make_app(words[0])(words)
    assert capsys.readouterr().err == f"camlake: {OUTS[line]} {tmp_path}/file: {tmp_path}/file is no folder\n"


def test_a_file_for_metrics_in_no_folder(tmp_path):
    write_corpus(tmp_path, 1, seed=1, size_hw=(48, 48))
    wrong = config(tmp_path, input=str(tmp_path / "images"), metrics=str(tmp_path / "gone/run.prom"))
    with pytest.raises(UsageError, match=r"^--metrics '\S+/gone/run.prom': \S+/gone is no folder$"):
        annotate(wrong, Screen())
    assert not (tmp_path / "out").exists()


def test_such_a_file_is_looked_for_before_anything_heavy_is_imported(tmp_path):
    words = ["annotate", str(tmp_path), "--out", str(tmp_path / "out"), "--classes", str(tmp_path / "no-such.csv")]
    said, loaded = said_and_loaded(words)
    assert said == f"camlake: --classes {tmp_path}/no-such.csv: not found\n"
    assert not HEAVY & loaded


def test_files_of_a_store(s3, tmp_path):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="folder/there.csv", Body=b"x")
    there = {"--a": f"s3://{bucket}/folder/there.csv", "--b": f"s3://{bucket}/folder", "--c": f"s3://{bucket}/*.csv"}
    refuse_missing_files(there, s3.storage)
    with pytest.raises(InputError, match=r"^--d s3://\S+/folder/gone.csv: not found$"):
        refuse_missing_files({**there, "--d": f"s3://{bucket}/folder/gone.csv"}, s3.storage)
    down = StorageConfig(endpoint_url="http://127.0.0.1:9")
    refuse_missing_files({"--e": f"s3://{bucket}/folder/there.csv"}, down)  # The verb tries longer, and says so.


def test_verify_looks_at_a_private_output_with_credentials_though_its_input_is_public(ceph):
    """With --anonymous it reads the input without credentials; Ceph, unlike moto, refuses such a look at the output."""
    url = f"s3://{ceph.bucket()}/labels"
    example().write(url, storage=ceph.storage)
    storage = ceph.storage.model_dump(include={"endpoint_url"})
    with pytest.raises(StoreError, match=r"can.t be listed: access denied$"):
        refuse_no_output(url, StorageConfig(**storage, anonymous=True))
    with pytest.raises(StoreError, match="problems, see above"):  # It has no plan; so it was looked at.
        verify(VerifyConfig.resolve({"out": url, **storage, "anonymous": True}), Screen())
