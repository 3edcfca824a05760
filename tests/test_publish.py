"""``camlake publish``: an Iceberg table has the current rows after every run, also after a compaction."""

import pytest
from pyiceberg.catalog import load_catalog

from jobs.publish import run
from jobs.terminal.console import Screen
from pipeline.outputs import reader
from pipeline.outputs.publish import iceberg
from pipeline.storage.lake.whole_objects import list_data_files
from schemas.errors import UsageError
from schemas.options.publish import PublishConfig
from schemas.reasons import Reason
from tests.compacting import OTHER, age, compact
from tests.fake_lake import MODEL

NAME = "labels.boxes"


class Catalog:
    """A SQL catalog in a folder."""

    def __init__(self, folder):
        folder.mkdir()
        self.options = {"catalog": f"sqlite:///{folder}/catalog.db", "warehouse": str(folder / "warehouse")}

    def publish(self, lake, **options):
        values = {"out": lake.out, "table": NAME, **self.options, **options}
        run(PublishConfig.resolve(values), Screen())

    def table(self, name=NAME):
        return load_catalog("camlake", uri=self.options["catalog"], warehouse=self.options["warehouse"]).load_table(
            name
        )

    def rows(self, name=NAME):
        return sorted(map(str, self.table(name).scan().to_arrow().to_pylist()))


@pytest.fixture
def catalog(tmp_path):
    return Catalog(tmp_path / "catalog")


def current(output, table="boxes", model=MODEL):
    with reader.open(output.out, model=model) as opened:
        return sorted(map(str, opened.arrow(table).to_pylist()))


def test_the_table_has_the_current_rows_and_their_partitions(output, catalog, capfd):
    catalog.publish(output)
    assert catalog.rows() == current(output)
    assert [field.name for field in catalog.table().spec().fields] == ["model", "date"]
    registered = {task.file.file_path for task in catalog.table().scan(row_filter=f"model = '{MODEL}'").plan_files()}
    own = {f"file://{output.path(path)}" for path in list_data_files(output.fs, output.root)}
    assert registered <= own
    catalog.publish(output)
    assert len(catalog.table().snapshots()) == 1
    assert "nothing to do" in capfd.readouterr().out


def test_each_later_run_is_one_snapshot_without_superseded_rows(output, catalog):
    catalog.publish(output)
    first = catalog.rows()
    output.run({"f": "v1"})
    middle = current(output)
    last = output.run({"c": "v2", "g": "v1"}, {"d": Reason.EMPTY})
    output.run({"h": "v1"}, finish=False)
    catalog.publish(output)
    snapshots = catalog.table().snapshots()
    assert len(snapshots) == 3
    assert snapshots[-1].summary.additional_properties["camlake.run-id"] == last.run_id
    then = [catalog.table().scan(snapshot_id=one.snapshot_id).to_arrow().to_pylist() for one in snapshots]
    assert [sorted(map(str, rows)) for rows in then[:2]] == [first, middle]
    output.run({"i": "v1"})
    catalog.publish(output)
    assert catalog.rows() == current(output)


def test_after_a_compaction_too(output, catalog):
    catalog.publish(output)
    output.run({"c": "v2"})
    compact(output, grace="1d")
    before = current(output)
    catalog.publish(output)
    assert catalog.rows() == before
    age(output)
    output.run({"k": "v1"})
    catalog.publish(output)
    assert catalog.rows() == current(output)
    compact(output)
    catalog.publish(output)
    age(output)
    compact(output)
    catalog.publish(output)
    assert catalog.rows() == current(output)
    known = len(catalog.table().snapshots())
    catalog.publish(output)
    assert len(catalog.table().snapshots()) == known


def test_no_snapshot_lacks_rows_that_a_compaction_dropped_since(output, catalog):
    catalog.publish(output)
    first = catalog.rows()
    output.run({"x": "v1"})
    output.run({"a": "v9"})
    compact(output, grace="1d")
    catalog.publish(output)
    states = [catalog.table().scan(snapshot_id=one.snapshot_id).to_arrow() for one in catalog.table().snapshots()]
    assert [sorted(map(str, rows.to_pylist())) for rows in states] == [first, current(output)]


def test_of_two_publishers_at_the_same_time_one_is_refused(output, catalog, monkeypatch):
    catalog.publish(output)
    output.run({"f": "v1"})
    describe = iceberg._Publication._described

    def after_another(self, *arguments):
        monkeypatch.setattr(iceberg._Publication, "_described", describe)
        catalog.publish(output)
        return describe(self, *arguments)

    monkeypatch.setattr(iceberg._Publication, "_described", after_another)
    with pytest.raises(UsageError, match=r"^--catalog .*, --table labels\.boxes: "):
        catalog.publish(output)
    assert catalog.rows() == current(output)


def test_a_column_that_is_new_joins_the_table(output, catalog):
    catalog.publish(output)
    with catalog.table().update_schema() as change:
        change.delete_column("method")
    output.run({"f": "v1"})
    catalog.publish(output)
    rows = catalog.table().scan().to_arrow()
    assert len(rows) == len(current(output))
    assert set(rows["method"].to_pylist()) == {"cam"}


@pytest.mark.parametrize("table", ["images", "heatmaps", "features", "quarantine"])
def test_every_table_can_be_published(output, catalog, table):
    catalog.publish(output, of=table, table=f"labels.{table}")
    assert catalog.rows(f"labels.{table}") == current(output, table)


def test_models_never_mix_unasked_and_a_table_keeps_its_source(output, catalog):
    output.run({"a": "v1"}, model=OTHER)
    with pytest.raises(UsageError, match="--model is missing"):
        catalog.publish(output)
    catalog.publish(output, model=MODEL)
    assert catalog.rows() == current(output)
    with pytest.raises(UsageError, match=r"--table labels\.boxes: it holds .*; allowed: another name"):
        catalog.publish(output, model="*")
    catalog.publish(output, model="*", table="labels.all")
    assert catalog.rows("labels.all") == current(output, model="*")


def test_wrong_use_is_one_line(output, catalog, monkeypatch):
    with pytest.raises(UsageError, match="--warehouse is missing"):
        catalog.publish(output, warehouse=None)
    with pytest.raises(UsageError, match=r"allowed: NAMESPACE\.NAME"):
        catalog.publish(output, table="boxes")
    with pytest.raises(UsageError, match=r"^model 'other': this output has"):
        catalog.publish(output, model="other")
    with pytest.raises(UsageError, match=r"--of foreground: .* has no such rows yet"):
        catalog.publish(output, of="foreground")
    with pytest.raises(UsageError, match=r"^--catalog sqlite:////nowhere/x\.db, --table labels\.boxes: .*") as found:
        catalog.publish(output, catalog="sqlite:////nowhere/x.db")
    assert "\n" not in str(found.value)
    monkeypatch.setattr(iceberg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'camlake\[iceberg\]'"):
        catalog.publish(output)
