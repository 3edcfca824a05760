"""An output that camlake 0.1 wrote is read, proven, continued and reboxed by this version.

tests/fixtures/output_0_1/pictures holds the seven pictures and the broken file of the bucket ``photos``. That version
wrote ``labels`` from them in two runs: before the second run, one picture changed and one was added.
"""

from pathlib import Path

import pytest

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.arrays.calibration import Calibration
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.calibrations import read_calibration
from pipeline.storage.lake.integrity.verify import verify
from schemas.options.config import StorageConfig
from schemas.options.rebox import ReboxConfig
from tests.jobs_on import run_annotate
from tests.pictures import SMOOTH, encoded
from tests.references.equal_rows import same_rows

FIXTURE = Path(__file__).with_name("fixtures") / "output_0_1"
NAMES = sorted(path.name for path in (FIXTURE / "pictures").iterdir())
ROWS = {"images": 7, "boxes": 14, "heatmaps": 14, "features": 7, "quarantine": 1}
"""Current rows; those of the older version of a picture are superseded."""


@pytest.fixture
def labels(s3):
    """The output in a bucket of its own; ``photos`` holds what it was made of."""
    if "photos" not in {bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]}:
        s3.client.create_bucket(Bucket="photos")
    for name in NAMES:
        s3.client.upload_file(str(FIXTURE / "pictures" / name), "photos", name)
    bucket = s3.bucket()
    for path in (path for path in (FIXTURE / "labels").rglob("*") if path.is_file()):
        s3.client.upload_file(str(path), bucket, f"out/{path.relative_to(FIXTURE / 'labels').as_posix()}")
    yield f"s3://{bucket}/out"
    s3.client.delete_object(Bucket="photos", Key="new.png")


def problems(out, storage):
    return verify(*connect(out, storage)).problems


def test_it_is_read():
    with camlake.open(str(FIXTURE / "labels")) as lake:
        assert {table: len(lake.relation(table)) for table in ROWS} == ROWS
        assert lake.sql("SELECT count(*) FROM all_images").fetchall() == [(8,)]
        assert sorted(lake.arrow("images")["uri"].to_pylist()) == [
            f"s3://photos/{name}" for name in NAMES if name != "broken.jpg"
        ]
        assert lake.arrow("quarantine")["reason_code"].to_pylist() == ["truncated"]
        assert [(run.status, run.counts.annotated) for run in lake.runs] == [("complete", 6), ("complete", 2)]
        fs, root = connect(str(FIXTURE / "labels"), StorageConfig())
        found = read_calibration(fs, root, lake.models[0], lake.runs[-1].settings)
    assert isinstance(found, Calibration)


def test_it_is_proven():
    report = verify(*connect(str(FIXTURE / "labels"), StorageConfig()))
    assert report.problems == ()
    assert report.facts["images superseded"] == 1


def test_only_what_is_new_is_annotated(labels, s3):
    options = {"endpoint_url": s3.endpoint_url}
    done = run_annotate("s3://photos/", labels, **options).counts
    assert (done.listed, done.already_done, done.planned) == (8, 8, 0)
    s3.client.put_object(Bucket="photos", Key="new.png", Body=encoded(SMOOTH))
    counts = run_annotate("s3://photos/", labels, **options).counts
    assert (counts.listed, counts.already_done, counts.annotated) == (9, 8, 1)
    assert problems(labels, s3.storage) == ()
    with camlake.open(labels, **options) as lake:
        assert {table: len(lake.relation(table)) for table in ("images", "heatmaps")} == {"images": 8, "heatmaps": 16}
        scores = lake.arrow("boxes", where="uri = 's3://photos/new.png'")["box_score"]
    assert scores.null_count == 0, "the older calibration counts"


def test_the_same_pictures_give_the_same_rows(labels, s3, tmp_path):
    out = f"{labels}-anew"
    run_annotate("s3://photos/", out, endpoint_url=s3.endpoint_url)
    local = tmp_path / "anew"
    fs, root = connect(out, s3.storage)
    fs.get(root, str(local), recursive=True)
    for table, rows in ROWS.items():
        # The older version left box_score null until there was a calibration.
        assert same_rows(FIXTURE / "labels", local, table, ("modified_at", "box_score")) == rows


def test_it_is_reboxed(labels, s3):
    config = {
        "labels": labels,
        "out": f"{labels}-30",
        "threshold": 0.3,
        "box_rule": "paper",
        "endpoint_url": s3.endpoint_url,
    }
    counts = rebox(ReboxConfig.resolve(config), Screen()).counts
    assert (counts.annotated, counts.rejected, counts.boxes) == (7, 1, 14)
    assert problems(f"{labels}-30", s3.storage) == ()
    assert rebox(ReboxConfig.resolve(config), Screen()).counts.planned == 0
