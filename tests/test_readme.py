"""README keeps its promises: its queries run on real output, its tables are complete, its picture is small."""

import csv
import io
import re
import shlex
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from jobs.sql import run as run_sql
from jobs.terminal.console import Screen
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs.reader import open as camlake_open
from schemas.options.sql import SqlConfig
from schemas.reasons import Reason
from schemas.tables import TABLES
from tests.jobs_on import ROOT, run_annotate

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker):
    """The fenced block after a marker."""
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, marker
    return found[1]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    write_corpus(folder, 10, seed=4, size_hw=(64, 64), broken=2)
    run_annotate(folder / "images", folder / "labels")
    return folder / "labels"


def test_the_query_is_the_same_in_duckdb_and_pandas(labels):
    sql = block("query-duckdb").replace("camlake-demo/labels", str(labels))
    by_duckdb = duckdb.sql(sql).to_arrow_table().to_pandas()
    names = {"pd": pd}
    exec(block("query-pandas").replace("camlake-demo/labels", str(labels)), names)
    by_pandas = names["top"]
    assert by_duckdb["model"].tolist() == by_pandas["model"].tolist()
    assert by_duckdb["label"].tolist() == by_pandas["label"].tolist()
    assert by_duckdb["boxes"].tolist() == by_pandas["boxes"].tolist()
    assert by_duckdb["area"].tolist() == pytest.approx(by_pandas["area"].tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "header"),
    [
        ("balance", ["label", "images", "prob"]),
        ("precise", None),
        ("rejects", ["reason_code", "images", "example", "detail"]),
        ("join", ["camera", "label", "boxes"]),
    ],
)
def test_each_recipe_answers_its_question(labels, tmp_path, monkeypatch, capfd, recipe, header):
    monkeypatch.chdir(tmp_path)
    with camlake_open(str(labels)) as lake:
        uris = lake.arrow("images")["uri"].to_pylist()
    Path("metadata.csv").write_text("uri,camera\n" + "".join(f"{uri},{len(uri) % 2}\n" for uri in uris))
    program, verb, out, *words = shlex.split(block(f"recipe-{recipe}"), comments=True)
    assert (program, verb, out) == ("camlake", "sql", "camlake-demo/labels")
    query, *options = words
    given = dict(zip(options[::2], options[1::2], strict=True))
    given = {name.removeprefix("--"): value for name, value in given.items()}
    run_sql(SqlConfig.resolve({"out": str(labels), "query": query, "format": "csv"} | given | formats(given)), Screen())
    if header is None:
        rows = pd.read_parquet("precise.parquet")
        assert 0 < len(rows) < len(pd.read_parquet(labels / "boxes"))
        assert rows["box_score"].min() >= 0.05
    else:
        names, *rows = csv.reader(io.StringIO(capfd.readouterr().out))
        assert names == header
        assert rows


def formats(given):
    """Return the format of a result that goes to a file."""
    return {"format": "parquet"} if "to" in given else {}


def test_every_reason_and_every_column_is_explained():
    for reason in Reason:
        assert f"| `{reason}` | {reason.stage} | {reason.meaning} |" in README
    for table, spec in TABLES.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{table}` |"))
        for column in set(spec.columns.names) - {"image_id", "run_id"}:
            assert column in row, (table, column)


def test_the_picture_is_there_and_small():
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert 10_000 < (ROOT / name).stat().st_size <= 300_000


def test_files_that_readme_names_exist():
    for name in re.findall(r"`((?:jobs|tests|pipeline|schemas)/[\w./-]+|cluster\.yaml|\.ci/run)`", README):
        assert Path(ROOT, name).exists(), name


def test_the_drawing_names_every_folder_of_the_program():
    drawing = README.split("## Development")[1].split("```")[1]
    for folder in (
        path for path in Path(ROOT, "pipeline").rglob("*") if path.is_dir() and (path / "__init__.py").exists()
    ):
        assert f"{folder.name}/" in drawing, folder
    for path in re.findall(r"^(\w+/)", drawing, re.MULTILINE):
        assert Path(ROOT, path).is_dir(), path
