"""Ways of damaging an output: each is found by ``verify``, and ``repair`` sets it right or leaves it named."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.lake.commit import done_images, remove_leftovers
from pipeline.storage.lake.integrity.repair import repair
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.records import load_commits, load_runs, write_record
from schemas.errors import LeaseError, StoreError
from schemas.reasons import Reason
from schemas.runs import RunManifest
from tests.fake_lake import DATE, MODEL, FakeLake, image_id
from tests.test_verify import file_of, rewrite

IMAGES = {"a": "v1", "b": "v1", "c": "v1", "d": "v1"}
REJECTED = {"bad": Reason.CORRUPT, "flaky": Reason.FETCH_FAILED}


class Damage:
    """An output of two runs to damage: the second annotates a changed picture and one that had failed."""

    def __init__(self, lake: FakeLake) -> None:
        self.lake = lake
        self.run = lake.run(IMAGES, REJECTED, tasks=2)
        self.last = lake.run({"a": "v2", "flaky": "v1"})

    def document(self, name: str, run: RunManifest | None = None) -> str:
        """Return the path of a document of the first run, or of ``run``."""
        return self.lake.path(f"_runs/{(run or self.run).run_id}/{name}")

    def data(self, table: str) -> str:
        """Return the path of the first file of a table of the first run."""
        return self.lake.path(file_of(self.run, table).path)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self.lake.fs.rm_file(path)

    def write(self, path: str, data: bytes) -> None:
        """Write a file over what was there."""
        self.lake.fs.pipe_file(path, data)

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        return bytes(self.lake.fs.cat_file(path))

    def cut(self, path: str, n_bytes: int) -> None:
        """Keep only the first bytes of a file."""
        self.write(path, self.read(path)[:n_bytes])

    def flip(self, path: str, at: int) -> None:
        """Flip a bit of a file."""
        data = bytearray(self.read(path))
        data[at] ^= 4
        self.write(path, bytes(data))

    def edit(self, name: str, **changes: object) -> None:
        """Change values of a JSON document; ``a__b`` is the value b of the object a."""
        path = self.document(name)
        document = json.loads(self.read(path))
        for key, value in changes.items():
            *outer, last = key.split("__")
            inner = document
            for part in outer:
                inner = inner[part]
            inner[last] = value
        self.write(path, json.dumps(document).encode())

    def edit_plan(self, change: Callable[[pa.Table], pa.Table]) -> None:
        """Write the plan of the first run anew."""
        path = self.document("plan/00000.parquet")
        sink = pa.BufferOutputStream()
        pq.write_table(change(pq.read_table(pa.BufferReader(self.read(path)))), sink)
        self.write(path, sink.getvalue().to_pybytes())

    def forge(self, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace a data file and all records of it, as a program with a fault would have written them."""
        rows = pq.read_table(pa.BufferReader(self.read(self.data(table))))
        rewrite(self.lake, self.run, table, change(rows))

    def move_commit_records(self) -> None:
        """Remove all commit records of the first run."""
        for name in ("000000", "000001"):
            self.remove(self.document(f"commits/{name}.json"))


def with_values(column: str, value: object) -> Callable[[pa.Table], pa.Table]:
    """Return a change that gives the first row another value in one column."""

    def change(rows: pa.Table) -> pa.Table:
        index = rows.schema.get_field_index(column)
        values = [value, *rows[column].to_pylist()[1:]]
        return rows.set_column(index, rows.schema.field(index), pa.array(values, rows.schema.field(index).type))

    return change


DAMAGES: dict[str, tuple[Callable[[Damage], None], int]] = {
    "a file of images is lost": (lambda d: d.remove(d.data("images")), 4),
    "a file of boxes is lost": (lambda d: d.remove(d.data("boxes")), 4),
    "a file of heatmaps is lost": (lambda d: d.remove(d.data("heatmaps")), 4),
    "a file of features is lost": (lambda d: d.remove(d.data("features")), 4),
    "a file of quarantine is lost": (lambda d: d.remove(d.data("quarantine")), 4),
    "a data file is empty": (lambda d: d.write(d.data("images"), b""), 4),
    "a data file is cut short": (lambda d: d.cut(d.data("heatmaps"), 1000), 4),
    "a bit of a data page is flipped": (lambda d: d.flip(d.data("boxes"), 40), 4),
    "a bit of a footer is flipped": (lambda d: d.flip(d.data("features"), -30), 4),
    "a data file is replaced by another one": (lambda d: d.write(d.data("boxes"), d.read(d.data("images"))), 4),
    "a data file has other rows": (lambda d: d.write(d.data("quarantine"), b"PAR1" + bytes(99) + b"PAR1"), 4),
    "the manifest is empty": (lambda d: d.write(d.document("manifest.json"), b""), 0),
    "the manifest is cut short": (lambda d: d.cut(d.document("manifest.json"), 300), 0),
    "the manifest is lost": (lambda d: d.remove(d.document("manifest.json")), 0),
    "counts of the manifest are edited": (lambda d: d.edit("manifest.json", counts__annotated=3), 0),
    "the listed inputs are edited": (
        lambda d: d.edit("manifest.json", counts__listed=9, counts__already_done=3),
        0,
    ),
    "the manifest forgets its files": (lambda d: d.edit("manifest.json", files=[]), 0),
    "the settings are edited": (lambda d: d.edit("manifest.json", settings__topk=99), 0),
    "the manifest says that the run is dead": (lambda d: d.edit("manifest.json", status="running"), 0),
    "a commit record is lost": (lambda d: d.remove(d.document("commits/000001.json")), 0),
    "all commit records are lost": (Damage.move_commit_records, 0),
    "a commit record is empty": (lambda d: d.write(d.document("commits/000000.json"), b""), 0),
    "a commit record is edited": (lambda d: d.edit("commits/000000.json", images=7), 0),
    "a commit record is of another task": (lambda d: d.edit("commits/000000.json", task="000001"), 0),
    "the lineage is lost": (lambda d: d.remove(d.document("lineage.json")), 0),
    "the lineage is edited": (lambda d: d.edit("lineage.json", model="other"), 0),
    "the copy of the manifest is edited": (lambda d: d.edit("began.json", counts__planned=1), 0),
    "the plan is lost": (lambda d: d.remove(d.document("plan/00000.parquet")), 0),
    "the plan is cut short": (lambda d: d.cut(d.document("plan/00000.parquet"), 500), 0),
    "an input is missing in the plan": (lambda d: d.edit_plan(lambda rows: rows.slice(1)), 0),
    "an input of the plan has another uri": (lambda d: d.edit_plan(with_values("uri", "elsewhere")), 4),
    "an orphan lies among the files": (
        lambda d: d.write(
            d.lake.path(f"boxes/model={MODEL}/date={DATE}/part-{d.run.run_id}-000009-00000000.parquet"), b"PAR1"
        ),
        0,
    ),
    "a box leaves its image": (lambda d: d.forge("boxes", with_values("xmax", 1000.0)), 4),
    "a box is inside out": (lambda d: d.forge("boxes", with_values("xmin", 60.0)), 4),
    "an edge is no number": (lambda d: d.forge("boxes", with_values("ymax", np.nan)), 4),
    "a box has another uri": (lambda d: d.forge("boxes", with_values("uri", "elsewhere")), 4),
    "a probability is above 1": (lambda d: d.forge("images", with_values("top1_prob", 1.5)), 4),
    "a map has another shape": (lambda d: d.forge("heatmaps", with_values("heat_w", 4)), 4),
    "a map's range is no number": (lambda d: d.forge("heatmaps", with_values("heat_max", np.nan)), 4),
    "a feature is infinite": (lambda d: d.forge("features", with_values("feature", [np.inf, 0, 0, 0])), 4),
    "a row is of an image that nobody annotated": (
        lambda d: d.forge("heatmaps", with_values("image_id", image_id("z"))),
        4,
    ),
    "a row is missing": (lambda d: d.forge("boxes", lambda rows: rows.slice(1)), 4),
    "an image stands twice": (lambda d: d.forge("images", lambda rows: pa.concat_tables([rows, rows])), 4),
}
"""Each way of damaging an output, and the most inputs that may have to be annotated again after the repair.

The first run commits a, c and the two rejections together, then b and d.
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Damage:
    """Return an undamaged output, which is made once; the tests damage copies of it."""
    whole = Damage(FakeLake(str(tmp_path_factory.mktemp("sound") / "out")))
    assert verify(whole.lake.fs, whole.lake.root).problems == ()
    return whole


@pytest.fixture
def damage(sound, local) -> Damage:
    """Return a copy of the undamaged output in the folder of ``local``."""
    shutil.copytree(sound.lake.root, local.root)
    local.hours = sound.lake.hours
    copied = copy.copy(sound)
    copied.lake = local
    return copied


def open_inputs(problems) -> int:
    """Return how many inputs are to be annotated again; fails for any other problem."""
    for line in problems:
        assert "left" in line, line
        assert line.endswith(": annotate again"), line
    return sum(int(line.partition(" left ")[2].split()[0]) for line in problems)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_repaired(damage, local, name):
    hurt, most_again = DAMAGES[name]
    hurt(damage)
    assert verify(local.fs, local.root).problems, "not found"
    said = repair(local.fs, local.root)
    assert said
    assert not any("\n" in line for line in said)
    done = {row["image_id"] for batch in done_images(local.fs, local.root, MODEL) for row in batch.to_pylist()}
    left = [uri for uri in (*IMAGES, "bad") if image_id(uri) not in done]
    assert open_inputs(verify(local.fs, local.root).problems) == len(left), "what was taken back is named"
    assert len(left) <= most_again, "sound rows are kept"
    assert repair(local.fs, local.root) == [], "a second repair finds nothing to do"
    local.run({uri: "v1" for uri in left if uri != "bad"}, {"bad": Reason.CORRUPT} if "bad" in left else None)
    assert verify(local.fs, local.root).problems == ()


@pytest.mark.usefixtures("damage")
def test_a_file_that_camlake_did_not_write_is_left_and_named(local):
    notes = local.path(f"boxes/model={MODEL}/notes.txt")
    local.fs.pipe_file(notes, b"mine")
    repair(local.fs, local.root)
    assert local.fs.cat_file(notes) == b"mine"
    assert verify(local.fs, local.root).problems == (
        f"boxes/model={MODEL}/notes.txt: no run committed this file; camlake did not write it, remove it by hand",
    )


def test_what_was_annotated_twice_is_beyond_repair_and_named(local):
    local.run({"a": "v1"})
    again = local.run({"a": "v1"})
    repair(local.fs, local.root)
    (problem,) = verify(local.fs, local.root).problems
    assert problem.startswith(f"run {again.run_id}: 1 images that were annotated before were worked on again")


def test_without_any_manifest_of_its_model_a_run_is_given_up(local):
    run = local.run({"a": "v1"})
    for name in ("manifest.json", "began.json"):
        local.fs.pipe_file(local.path(f"_runs/{run.run_id}/{name}"), b"")
    with pytest.raises(StoreError, match="--repair"):
        load_runs(local.fs, local.root)
    assert any("nothing is left of it" in line for line in repair(local.fs, local.root))
    assert load_runs(local.fs, local.root) == []
    local.run({"a": "v1"})
    assert verify(local.fs, local.root).problems == ()


def test_of_an_older_version_the_settings_of_another_run_are_taken(local):
    first, second = local.run({"a": "v1"}), local.run({"b": "v1"})
    for run in (first, second):
        local.fs.rm_file(local.path(f"_runs/{run.run_id}/began.json"))
    local.fs.pipe_file(local.path(f"_runs/{first.run_id}/manifest.json"), b"")
    repair(local.fs, local.root)
    assert verify(local.fs, local.root).problems == ()
    assert [run.settings for run in load_runs(local.fs, local.root)] == [first.settings, second.settings]


def test_annotate_names_the_command(damage, local):
    damage.write(damage.document("manifest.json"), b"")
    with Lease.acquire(local.fs, local.root, "next"), pytest.raises(StoreError, match="camlake verify OUT --repair"):
        remove_leftovers(local.fs, local.root)
    damage.remove(damage.document("manifest.json"))
    with pytest.raises(StoreError, match="camlake verify OUT --repair"):
        load_runs(local.fs, local.root)


@pytest.mark.usefixtures("damage")
def test_no_repair_while_a_run_writes(local):
    with Lease.acquire(local.fs, local.root, "20261123T070000-abcdef"), pytest.raises(LeaseError):
        repair(local.fs, local.root)


def test_a_sound_output_is_left_as_it_is(lake):
    damage = Damage(lake)
    before = {path: lake.fs.cat_file(path) for path in lake.fs.find(lake.root) if "/lease/" not in path}
    assert repair(lake.fs, lake.root) == []
    assert {path: lake.fs.cat_file(path) for path in lake.fs.find(lake.root) if "/lease/" not in path} == before
    assert load_commits(lake.fs, lake.root, damage.run.run_id)


def test_tables_of_a_newer_version_are_not_touched(local):
    run = local.run({"a": "v1"})
    files = tuple(replace(file, table="silhouettes") for file in run.files[:1]) + run.files
    path = local.path(LakePaths(local.root).manifest_path(run.run_id))
    write_record(local.fs, path, run.model_copy(update={"files": files}))
    for act in (verify, repair):
        with pytest.raises(StoreError, match="has the table silhouettes, which this camlake does not know"):
            act(local.fs, local.root)


def test_a_document_of_a_newer_version_is_not_touched(local):
    run = local.run({"a": "v1"})
    newer = run.model_copy(update={"schema_version": 2})
    write_record(local.fs, local.path(LakePaths(local.root).manifest_path(run.run_id)), newer)
    with pytest.raises(StoreError, match="schema version 2 is newer"):
        repair(local.fs, local.root)
