"""``camlake demo`` as a newcomer runs it: three lines at the end, tables that the README's queries read, a page."""

import re
import shutil

import duckdb
import pandas as pd
import pytest

from jobs import demo
from jobs.demo import DemoConfig
from jobs.terminal.console import Screen
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import UsageError
from schemas.options.config import StorageConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "camlake-demo"
    demo.run(DemoConfig(folder=str(folder), images=40), Screen())
    return folder


def test_the_boxes_are_right(folder):
    scores = pd.read_json(folder / "labels" / "_reports" / "scores.json", typ="series")
    figures = {figure["metric"]: figure["value"] for figure in scores["figures"]}
    assert scores["images"] == 40
    assert figures["top1_accuracy"] > 0.85
    assert figures["gt_known"] > 0.6


def test_every_picture_is_accounted_for(folder):
    report = verify(*connect(str(folder / "labels"), StorageConfig()))
    assert report.problems == ()
    query = f"SELECT reason_code FROM '{folder}/labels/quarantine/**/*.parquet' ORDER BY 1"
    assert duckdb.sql(query).fetchall() == [("not_an_image",), ("truncated",)]


def test_the_page_shows_pictures_and_scores(folder):
    page = (folder / "report.html").read_text()
    assert page.count('id="picture-') == 40
    assert "MaxBoxAcc" in page
    assert re.findall(r"https?://\S+", page) == []


def test_again_is_a_matter_of_seconds_and_another_demo_is_refused(folder, capsys):
    demo.run(DemoConfig(folder=str(folder), images=40), Screen())
    last = capsys.readouterr().out.strip().splitlines()[-3:]
    assert [line.split(":")[0] for line in last] == ["written", "look", "query"]
    with pytest.raises(UsageError, match="holds another demo"):
        demo.run(DemoConfig(folder=str(folder), images=41), Screen())


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no demo"):
        demo.run(DemoConfig(folder=str(tmp_path)), Screen())
    shutil.rmtree(tmp_path)
