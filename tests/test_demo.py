"""``camlake demo`` as a newcomer runs it: three lines at the end, tables that the README's queries read, a page."""

import json
import re
import shutil
import threading
import urllib.request

import duckdb
import pandas as pd
import pytest

from jobs import demo
from jobs.demo import DemoConfig
from jobs.export import run as export
from jobs.terminal.console import Screen
from pipeline.outputs.export.export_formats import format_names
from pipeline.outputs.page.live import LiveCatalog
from pipeline.outputs.page.server import ViewServer
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.options.export import ExportConfig
from schemas.options.reading import ViewConfig


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


@pytest.mark.parametrize("to", format_names())
def test_every_format_is_exported_with_its_pictures(folder, tmp_path, capsys, to):
    export(ExportConfig.resolve({"out": f"{folder}/labels", "dest": str(tmp_path / to), "to": to}), Screen())
    (boxes,) = duckdb.sql(f"SELECT count(*) FROM '{folder}/labels/boxes/**/*.parquet'").fetchall()
    assert f"{boxes[0]} boxes" in capsys.readouterr().out
    assert [file for file in (tmp_path / to).rglob("*") if file.is_file()]


def test_the_view_finds_every_picture(folder):
    with ViewServer(LiveCatalog(ViewConfig(out=f"{folder}/labels")), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with urllib.request.urlopen(f"{server.url}api/images?count=200", timeout=60) as answer:
                found = json.load(answer)["images"]
            with urllib.request.urlopen(f"{server.url}picture/{found[0]['id']}?size=large", timeout=60) as answer:
                kind = answer.headers["Content-Type"]
        finally:
            server.shutdown()
            thread.join()
    assert (len(found), kind) == (40, "image/webp")


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
