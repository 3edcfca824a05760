"""``evaluate --calibrate``: fitted on half of the truth, kept in the output, refused where it can't be."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage.filesystems import connect
from pipeline.storage.lake.calibrations import calibration_path, read_calibration
from schemas.errors import StoreError, UsageError
from tests.fake_lake import MODEL, image_id
from tests.scoring import BUMP, STORAGE, Output, job, one_map


def many_boxes(rng: np.random.Generator) -> tuple[Output, str]:
    """Return 200 images with a box each, right as often as class_prob says, and their truth."""
    output, truth = Output(), ["file,class_id,xmin,ymin,xmax,ymax"]
    for index in range(200):
        prob = rng.uniform(0.05, 0.95)
        output.image(f"{index}.jpg", 1)
        box = (0, 0, 50, 50) if rng.random() < prob else (60, 60, 100, 100)
        output.answer(f"{index}.jpg", 0, 1, BUMP, box)
        output.rows["boxes"][-1] |= {"class_prob": prob, "area_frac": 0.2}
        truth.append(f"{index}.jpg,1,0,0,50,50")
    output.answer("0.jpg", 7, 2, BUMP, (0, 0, 9, 9))  # beyond the top 5: only a truth asks for such a class
    return output, "\n".join(truth)


def test_a_calibration_is_kept_reported_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, truth = many_boxes(np.random.default_rng(0))
    output.write(str(tmp_path / "out"))
    (tmp_path / "many.csv").write_text(truth)
    job(tmp_path, truth=str(tmp_path / "many.csv"), calibrate=True)
    found = json.loads((tmp_path / "out/_reports/scores.json").read_text())["calibration"]
    assert found["boxes_fitted"] + found["boxes_tested"] == 200
    assert found["ece"] < 0.15
    assert sum(boxes for boxes, _, _ in found["reliability"]) == found["boxes_tested"]
    assert "## Calibrated box score" in (tmp_path / "out/_reports/scores.md").read_text()
    assert "calibrated box_score: Fitted on" in capsys.readouterr().err
    fs, root = connect(str(tmp_path / "out"), STORAGE)
    calibration = read_calibration(fs, root, MODEL, {})
    assert calibration is not None
    likely, unlikely = calibration.scores(
        {
            "class_prob": [0.9, 0.1],
            "area_frac": [0.2, 0.2],
            "rank": [0, 0],
            "component": [0, 0],
            "threshold": [0.2, 0.2],
        }
    )
    assert likely > 0.7
    assert unlikely < 0.3
    path = Path(calibration_path(root, MODEL))
    before = path.read_bytes()
    job(tmp_path, truth=str(tmp_path / "many.csv"), calibrate=True)
    assert path.read_bytes() == before
    assert read_calibration(fs, root, "other-12345678", {}) is None
    for other in ({"method": "gradcam"}, {"tta": "flip"}, {"scales": [1.0, 2.0]}):
        with pytest.raises(StoreError, match="fitted on boxes made with --method cam, --tta none"):
            read_calibration(fs, root, MODEL, other)
    path.write_text("[]")
    with pytest.raises(StoreError, match="no calibration of this version"):
        read_calibration(fs, root, MODEL, {})


def test_a_calibration_needs_right_and_wrong_boxes(tmp_path: Path) -> None:
    one_map(BUMP).write(str(tmp_path / "out"))
    (tmp_path / "one.csv").write_text("file,class_id,xmin,ymin,xmax,ymax\na.jpg,1,0,0,50,100\n")
    with pytest.raises(
        UsageError, match=r"--calibrate: .* 0 right and 0 wrong ones, .* on 1 and 0; allowed: at least 10"
    ):
        job(tmp_path, truth=str(tmp_path / "one.csv"), calibrate=True)


@pytest.mark.parametrize("rights", [(9, 60), (60, 0), (60, 9)])
def test_a_calibration_needs_them_in_both_halves(tmp_path: Path, rights: tuple[int, int]) -> None:
    output, truth, places = Output(), ["file,class_id,xmin,ymin,xmax,ymax"], [0, 0]
    for index in range(200):
        half = int(image_id(f"{index}.jpg")[-1], 16) % 2
        output.image(f"{index}.jpg", 1)
        output.answer(f"{index}.jpg", 0, 1, BUMP, (0, 0, 50, 50) if places[half] < rights[half] else (60, 60, 90, 90))
        places[half] += 1
        truth.append(f"{index}.jpg,1,0,0,50,50")
    output.write(str(tmp_path / "out"))
    (tmp_path / "many.csv").write_text("\n".join(truth))
    counts = f"has {rights[0]} right and {places[0] - rights[0]} wrong .* on {rights[1]} and {places[1] - rights[1]};"
    with pytest.raises(UsageError, match=f"^--calibrate: .* {counts} allowed: at least 10 of each$"):
        job(tmp_path, truth=str(tmp_path / "many.csv"), calibrate=True)
    assert not (tmp_path / "out/_calibrations").exists()
