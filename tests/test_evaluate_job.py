"""The job evaluate: its table, its files, its place, its failures."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InputError, StoreError, UsageError
from schemas.scores import Figure
from tests.scoring import TRUTH, example, job


def test_the_job_prints_a_table_and_writes_json_and_markdown(tmp_path: Path) -> None:
    output = example()
    output.image("s3://b/x/e.jpg", 6)
    output.write(str(tmp_path / "out"))
    printed = job(tmp_path)
    assert "MaxBoxAccV2, IoU ≥ 0.7" in printed
    document = json.loads((tmp_path / "out/_reports/scores.json").read_text())
    gt_known = next(figure for figure in document["figures"] if figure["metric"] == "gt_known")
    assert (gt_known["value"], gt_known["full_image"], document["images"]) == (0.5, 0.25, 4)
    page = (tmp_path / "out/_reports/scores.md").read_text()
    assert "| GT-known | 0.20 | 0.500 |" in page
    assert "| star | 1 | top-1 accuracy |  | 0.000 | 0.000 – 0.000 |  |  |" in page
    assert "| star | 1 | mean IoU | 0.20 | 0.800 | 0.800 – 0.800 | 0.500 | 0.329 |" in page
    star = next(each for each in document["classes"] if each["class_name"] == "star")
    assert star["max_box_acc"] == asdict(Figure("max_box_acc", 0.02, 1, 1, 1, full_image=1, central_70=0))


def test_the_report_goes_where_it_is_told(tmp_path: Path) -> None:
    example().write(str(tmp_path / "out"))
    job(tmp_path, report=str(tmp_path / "elsewhere"))
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "curves.png",
        "scores.json",
        "scores.md",
    ]
    assert not (tmp_path / "out/_reports").exists()


def test_failures_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no camlake output here"):
        job(tmp_path)
    example().write(str(tmp_path / "out"))
    with pytest.raises(InputError, match="not found"):
        job(tmp_path, truth=str(tmp_path / "none.csv"))
    with pytest.raises(UsageError, match="--iou 'closed'"):
        job(tmp_path, iou="closed")


def test_a_damaged_file_is_the_outputs_fault(tmp_path: Path) -> None:
    example().write(str(tmp_path / "out"))
    for file in (tmp_path / "out/boxes").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(StoreError, match=r"^\S+/out can't be read: .*\(`camlake verify` says what is damaged"):
        job(tmp_path)


def test_output_truth_and_report_in_a_bucket(s3: Any, tmp_path: Path) -> None:
    bucket = s3.bucket()
    storage = s3.storage
    example().write(f"s3://{bucket}/out", storage=storage)
    s3.client.put_object(Bucket=bucket, Key="truth.csv", Body=TRUTH.encode())
    job(tmp_path, out=f"s3://{bucket}/out", truth=f"s3://{bucket}/truth.csv", endpoint_url=storage.endpoint_url)
    assert {"out/_reports/scores.json", "out/_reports/scores.md"} <= set(s3.keys(bucket))
