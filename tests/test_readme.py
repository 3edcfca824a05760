"""README keeps its promises: its queries run on real output, its tables are complete, its picture is small."""

import re
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from pipeline.images.synthetic.scenes import write_corpus
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
    write_corpus(folder, 10, seed=4, size_hw=(64, 64), broken=0)
    run_annotate(folder / "images", folder / "labels")
    return folder / "labels"


def test_the_query_is_the_same_in_duckdb_and_pandas(labels):
    sql = block("query-duckdb").replace("camlake-demo/labels", str(labels))
    by_duckdb = duckdb.sql(sql).to_arrow_table().to_pandas()
    names = {"pd": pd}
    exec(block("query-pandas").replace("camlake-demo/labels", str(labels)), names)
    by_pandas = names["top"]
    assert by_duckdb["label"].tolist() == by_pandas["label"].tolist()
    assert by_duckdb["boxes"].tolist() == by_pandas["boxes"].tolist()
    assert by_duckdb["area"].tolist() == pytest.approx(by_pandas["area"].tolist(), rel=1e-5)


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
