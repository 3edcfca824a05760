"""Evaluation end to end: an output written through the real commit path, with scores worked by hand."""

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from jobs.console import Screen
from jobs.evaluate import run
from pipeline import camlake
from pipeline.evaluation import evaluate
from pipeline.storage.calibrations import calibration_path, read_calibration
from pipeline.storage.commit import Committer, finish_run, start_run
from pipeline.storage.filesystems import connect
from pipeline.storage.lease import Lease
from pipeline.storage.truth import read_truth
from schemas.config import EvaluateConfig, StorageConfig
from schemas.errors import InputError, StoreError, UsageError
from schemas.scores import ClassScore, Figure, Scores
from schemas.tables import table_schema
from tests.fake_lake import CHANNELS, DATE, MODEL, START, image_id, manifest_of, version

LABELS = ["rest", "ring", "star", "cat", "dog", "owl", "a|b<c>", "x", "y", "z"]
STORAGE = StorageConfig()
TRUTH = """file,label,class_id,xmin,ymin,xmax,ymax
x/a.jpg,ring,1,35,35,55,55
b.jpg,star,2,0,0,50,100
c.jpg,cat or dog,3;4,0,0,50,50
d.jpg,owl,5,15,15,85,85
missing.jpg,owl,5,15,15,85,85
"""

BUMP = np.zeros((10, 10), np.uint8)
BUMP[4, 4] = 255
"""On 100×100 pixels its level set at t is the square of half-side 10·(1 - t) around (45, 45)."""
LEFT = np.zeros((10, 10), np.uint8)
LEFT[:, :5] = 255
"""Reaches to x = 55 - 10·t."""
TWO = np.zeros((10, 10), np.uint8)
TWO[:4, :4] = TWO[5:] = 255
"""Two components: the smaller is [0, 0, 45 - 10·t, 45 - 10·t], the larger the lower half."""


@dataclass
class Output:
    """Rows of an output, and the run that writes them."""

    rows: dict[Any, list[dict[str, Any]]] = field(default_factory=lambda: {"images": [], "boxes": [], "heatmaps": []})
    settings: dict[str, Any] = field(
        default_factory=lambda: {"outputs": ["boxes", "heatmaps"], "topk": 5, "threshold": [0.2]}
    )

    def image(self, uri: str, top1: int, width: int = 100, height: int = 100) -> None:
        top = {"top1_class_id": top1, "top1_label": LABELS[top1], "top1_prob": 0.5, "n_boxes": 0, "annotated_at": START}
        shape = {"width_px": width, "height_px": height, "format": "JPEG"}
        self.rows["images"].append(version(uri, "v1") | top | shape)

    def answer(
        self, uri: str, rank: int, class_id: int, heat: np.ndarray, *boxes: tuple, threshold: float = 0.2
    ) -> None:
        kind = {"image_id": image_id(uri), "rank": rank, "class_id": class_id, "label": LABELS[class_id]}
        shape = {"heat_h": heat.shape[0], "heat_w": heat.shape[1], "heat_min": -1.0, "heat_max": 3.0}
        self.rows["heatmaps"].append(kind | shape | {"heat": heat.flatten().tolist()})
        for component, box in enumerate(boxes):
            edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) | {"area_frac": 0.1}
            cut = {"class_prob": 0.5, "component": component, "threshold": threshold, "method": "cam", "uri": uri}
            self.rows["boxes"].append(kind | edges | cut)

    def write(self, out: str, model: str = MODEL, hour: int = 6, storage: StorageConfig = STORAGE) -> str:
        """Commit the rows of the tables that the settings name, as a run of that hour."""
        fs, root = connect(out, storage)
        run_id = f"20261123T{hour:02d}0000-abcdef"
        tables = ["images", *self.settings["outputs"]]
        schemas = {table: table_schema(table, CHANNELS, "float32") for table in tables}
        manifest = manifest_of(run_id, model, planned=len(self.rows["images"]))
        manifest = manifest.model_copy(update={"settings": self.settings})
        rows = {
            table: pa.Table.from_pylist([row | {"run_id": run_id} for row in self.rows[table]], schema=schema)
            for table, schema in schemas.items()
        }
        with Lease.acquire(fs, root, run_id) as lease:
            start_run(fs, root, manifest)
            Committer(out, storage, run_id, model, DATE, lease.generation, schemas).commit("000000", rows)
            finish_run(fs, root, manifest, lease.generation)
        return out


def example() -> Output:
    """Return four images: right at once, right by the third class, wrong by the better-ranked of two, no map."""
    output = Output()
    output.image("s3://b/x/a.jpg", 1)
    output.answer("s3://b/x/a.jpg", 0, 1, BUMP, (35, 35, 55, 55), (0, 0, 9, 9))
    output.image("s3://b/x/b.jpg", 9)
    output.answer("s3://b/x/b.jpg", 0, 9, TWO, (0, 0, 50, 100))
    output.answer("s3://b/x/b.jpg", 2, 2, LEFT, (0, 0, 40, 100))
    output.image("s3://b/x/c.jpg", 8)
    output.answer("s3://b/x/c.jpg", 1, 4, TWO, (50, 50, 100, 100), (0, 0, 50, 50))
    output.answer("s3://b/x/c.jpg", 7, 3, LEFT, (0, 0, 50, 50))
    output.image("s3://b/x/d.jpg", 9)
    output.answer("s3://b/x/d.jpg", 0, 9, BUMP, (15, 15, 85, 85))
    return output


def score(output: Output, folder: Path, truth: str = TRUTH, **options: Any) -> Scores:
    (folder / "truth.csv").write_text(truth)
    with camlake.open(output.write(str(folder / "out"))) as lake:
        return evaluate(lake, read_truth(str(folder / "truth.csv"), STORAGE), **options)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    return score(example(), tmp_path_factory.mktemp("example"))


@pytest.mark.parametrize(
    ("metric", "threshold", "value", "full_image", "central_70"),
    [
        ("top1_accuracy", None, 1 / 4, None, None),
        ("top5_accuracy", None, 3 / 4, None, None),
        ("gt_known", 0.2, 2 / 4, 1 / 4, 1 / 4),
        ("top1_localization", 0.2, 1 / 4, 0, 0),
        ("top5_localization", 0.2, 2 / 4, 1 / 4, 0),
        (
            "mean_iou",
            0.2,
            (1 + 0.8) / 4,
            (0.04 + 0.5 + 0.25 + 0.49) / 4,
            (400 / 4900 + 2450 / 7450 + 1225 / 6175 + 1) / 4,
        ),
        ("max_box_acc", 0.02, 2 / 4, 1 / 4, 1 / 4),
        ("max_box_acc_v2", None, 3 / 4, (2 / 4 + 1 / 4 + 0) / 3, (2 / 4 + 1 / 4 + 1 / 4) / 3),
        ("max_box_acc_v2_at_0.3", 0.02, 3 / 4, 2 / 4, 2 / 4),
        ("max_box_acc_v2_at_0.5", 0.02, 3 / 4, 1 / 4, 1 / 4),
        ("max_box_acc_v2_at_0.7", 0.02, 3 / 4, 0, 1 / 4),
        ("pointing_game", None, 3 / 4, 2 / 4, 2 / 4),
    ],
)
def test_every_figure_by_hand(
    scores: Scores,
    metric: str,
    threshold: float | None,
    value: float,
    full_image: float | None,
    central_70: float | None,
) -> None:
    figure = scores.figure(metric)
    assert figure.threshold == threshold
    assert figure.value == pytest.approx(value)
    assert figure.full_image == (None if full_image is None else pytest.approx(full_image))
    assert figure.central_70 == (None if central_70 is None else pytest.approx(central_70))
    assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_counts_notes_and_curve(scores: Scores) -> None:
    assert (scores.model, scores.images, scores.pairs) == (MODEL, 4, 4)
    assert (scores.missing_images, scores.pairs_without_rows) == (1, 1)
    assert "1 images of the truth are not among" in scores.notes[0]
    assert "1 of 4 pairs" in scores.notes[1]
    assert [curve.metric for curve in scores.curves_of("accuracy")] == [
        "max_box_acc",
        *(f"max_box_acc_v2_at_{delta}" for delta in (0.3, 0.5, 0.7)),
    ]
    assert scores.curves_of("precision") == []
    curve = dict(scores.curves[0].points)
    assert len(curve) == 50
    assert [curve[t] for t in (0.0, 0.02, 0.28, 0.3, 0.98)] == [0.25, 0.5, 0.5, 0.25, 0.25]


def test_scores_of_each_class(scores: Scores) -> None:
    by_name = {each.class_name: each for each in scores.classes}
    assert set(by_name) == {"ring", "star", "cat or dog", "owl"}
    star = by_name["star"]
    assert star.pairs == 1
    assert star.top1_accuracy == Figure("top1_accuracy", None, 0, 0, 0)
    assert star.gt_known == Figure("gt_known", 0.2, 1, 1, 1, full_image=1, central_70=0)
    assert star.max_box_acc == Figure("max_box_acc", 0.02, 1, 1, 1, full_image=1, central_70=0)
    assert star.mean_iou is not None
    assert (star.mean_iou.value, star.mean_iou.full_image) == (pytest.approx(0.8), pytest.approx(0.5))
    assert star.mean_iou.central_70 == pytest.approx(2450 / 7450)


@pytest.mark.parametrize("accuracy", ["top1_accuracy", "top5_accuracy", "top1_localization", "top5_localization"])
def test_errors_are_what_is_left_to_one(scores: Scores, accuracy: str) -> None:
    one, other = scores.figure(accuracy), scores.figure(accuracy.removesuffix("_accuracy") + "_error")
    assert other.value == pytest.approx(1 - one.value)
    assert (other.low, other.high, other.threshold) == (1 - one.high, 1 - one.low, one.threshold)
    assert other.full_image == (None if one.full_image is None else 1 - one.full_image)


def coco_truth(folder: Path, **kinds: Any) -> str:
    """Write a truth of one image, 100×100 pixels, and return its path; ``kinds`` are more columns of the object."""
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "ring"}],
        "annotations": [
            {
                "image_id": 7,
                "category_id": 3,
                "bbox": [0, 0, 50, 100],
                "segmentation": [[0, 0, 50, 0, 50, 100, 0, 100]],
            },
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1, **kinds},
        ],
    }
    (folder / "truth.json").write_text(json.dumps(document))
    return str(folder / "truth.json")


def one_map(heat: np.ndarray) -> Output:
    output = Output()
    output.image("a.jpg", 1)
    output.answer("a.jpg", 0, 1, heat, (0, 0, 50, 100))
    return output


def test_pxap_of_a_map_that_is_half_right(tmp_path: Path) -> None:
    heat = np.zeros((2, 2), np.uint8)
    heat[0] = 255
    # The upper half is 255 to 0, the same left, in the object, and right: precision is 1/2 at every score.
    one_map(heat).write(str(tmp_path / "out"))
    document = scores_of_job(tmp_path, coco_truth(tmp_path))
    found = figure_of(document, "pxap")
    assert found["value"] == pytest.approx(0.5, abs=0.01)
    assert found["full_image"] == pytest.approx(0.5, abs=0.01)
    assert found["central_70"] == pytest.approx(0.5, abs=0.01), "half of the central box is inside, and of the rest"
    assert (tmp_path / "out/_reports/precision_recall.png").is_file()


def test_pxap_leaves_out_what_lies_in_a_crowd(tmp_path: Path) -> None:
    heat = np.full((1, 4), 255, np.uint8)
    heat[0, :2] = 0
    one_map(heat).write(str(tmp_path / "out"))
    # By columns, background first: the right half is a crowd, so only the object's pixels are left.
    crowd = {"segmentation": {"size": [100, 100], "counts": [50 * 100, 50 * 100]}}
    assert figure_of(scores_of_job(tmp_path, coco_truth(tmp_path)), "pxap")["value"] < 0.5
    assert figure_of(scores_of_job(tmp_path, coco_truth(tmp_path, **crowd)), "pxap")["value"] == pytest.approx(1)


def test_a_segmentation_of_another_size_is_named(tmp_path: Path) -> None:
    one_map(BUMP).write(str(tmp_path / "out"))
    crowd = {"segmentation": {"size": [10, 10], "counts": [100]}}
    with pytest.raises(UsageError, match=r"'a.jpg': segmentation of 'ring': is of \[10, 10\] rows and columns"):
        job(tmp_path, truth=coco_truth(tmp_path, **crowd))


def scores_of_job(folder: Path, truth: str) -> dict[str, Any]:
    job(folder, truth=truth)
    document: dict[str, Any] = json.loads((folder / "out/_reports/scores.json").read_text())
    return document


def figure_of(document: dict[str, Any], metric: str) -> dict[str, Any]:
    found: dict[str, Any] = next(figure for figure in document["figures"] if figure["metric"] == metric)
    return found


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
    with pytest.raises(UsageError, match="--calibrate: 1 boxes on the truth's images are too few for two halves"):
        job(tmp_path, truth=coco_truth(tmp_path), calibrate=True)


def test_inclusive_pixels_make_the_truth_one_pixel_larger(tmp_path: Path) -> None:
    scores = score(example(), tmp_path, convention="inclusive")
    expected = (400 / 441 + 4000 / (51 * 101) + 1 / (50 * 50 + 51 * 51 - 1) + 0) / 4
    assert scores.figure("mean_iou").value == pytest.approx(expected)
    assert scores.iou_convention == "inclusive"


def test_two_classes_of_one_image_are_two_pairs_and_one_image(tmp_path: Path) -> None:
    output = Output()
    output.image("a.jpg", 1)
    output.answer("a.jpg", 0, 1, BUMP, (35, 35, 55, 55))
    output.answer("a.jpg", 1, 2, LEFT, (50, 0, 100, 100))
    truth = "file,class_id,xmin,ymin,xmax,ymax\na.jpg,1,35,35,55,55\na.jpg,2,0,0,50,100\n"
    scores = score(output, tmp_path, truth)
    assert (scores.images, scores.pairs) == (1, 2)
    assert scores.figure("top1_accuracy").value == scores.figure("top1_localization").value == 1
    assert scores.figure("gt_known").value == 0.5


def test_several_thresholds_have_their_own_figures(tmp_path: Path) -> None:
    output = Output()
    output.settings["threshold"] = [0.2, 0.35]
    output.image("a.jpg", 1)
    output.answer("a.jpg", 0, 1, BUMP, (35, 35, 55, 55))
    output.rows["boxes"] += [row | {"threshold": 0.35, "xmax": 36.0} for row in output.rows["boxes"]]
    scores = score(output, tmp_path, "file,class_id,xmin,ymin,xmax,ymax\na.jpg,1,35,35,55,55\n")
    assert (scores.figure("gt_known", 0.2).value, scores.figure("gt_known", 0.35).value) == (1, 0)


def test_maps_of_other_sizes_cover_their_whole_image(tmp_path: Path) -> None:
    output = example()
    output.image("s3://b/x/wide.jpg", 5, width=200, height=50)
    heat = np.zeros((5, 20), np.uint8)
    heat[2, 10] = 255
    output.answer("s3://b/x/wide.jpg", 0, 5, heat)
    scores = score(output, tmp_path, TRUTH + "wide.jpg,owl,5,95,15,115,35\n")
    assert scores.figure("pointing_game").value == 4 / 5
    assert scores.figure("max_box_acc").value == 3 / 5
    assert scores.figure("gt_known").value == 2 / 5


def test_truth_by_label(tmp_path: Path) -> None:
    truth = "image,class_name,xmin,ymin,xmax,ymax\na.jpg,ring,35,35,55,55\nb.jpg,star,0,0,50,100\n"
    scores = score(example(), tmp_path, truth)
    assert (scores.figure("gt_known").value, scores.figure("top1_accuracy").value) == (1, 0.5)


def test_an_output_without_heatmaps_says_what_it_leaves_out(tmp_path: Path) -> None:
    output = example()
    output.settings["outputs"] = ["boxes"]
    scores = score(output, tmp_path)
    assert {figure.metric for figure in scores.figures} == {
        "top1_accuracy",
        "top1_error",
        "gt_known",
        "top1_localization",
        "top1_localization_error",
        "mean_iou",
    }
    assert (scores.curves, scores.classes[0].max_box_acc) == ((), None)
    assert any("MaxBoxAcc, MaxBoxAccV2 and the pointing game are left out" in note for note in scores.notes)
    assert any("Top-5 figures are left out" in note for note in scores.notes)


def test_an_output_without_boxes_says_what_it_leaves_out(tmp_path: Path) -> None:
    output = example()
    output.settings["outputs"] = ["heatmaps"]
    scores = score(output, tmp_path)
    assert scores.figure("max_box_acc").value == 0.5
    assert scores.classes[0].gt_known is None
    assert any("GT-known, localization and mean IoU are left out" in note for note in scores.notes)
    with pytest.raises(KeyError):
        scores.figure("gt_known")


def test_too_few_ranks_leave_top5_out_unless_every_true_class_has_its_rank(tmp_path: Path) -> None:
    output = example()
    output.settings["topk"] = 3
    assert "top5_accuracy" not in {figure.metric for figure in score(output, tmp_path).figures}
    known = TRUTH.replace("d.jpg", "not-annotated.jpg")
    again = example()
    again.settings["topk"] = 3
    (tmp_path / "two").mkdir()
    assert score(again, tmp_path / "two", known).figure("top5_accuracy").value == 1


def test_the_newest_models_rows_are_scored_unless_one_is_named(tmp_path: Path) -> None:
    example().write(str(tmp_path / "out"), model="older-12345678", hour=5)
    newer = Output()
    newer.image("s3://b/x/a.jpg", 9)
    newer.answer("s3://b/x/a.jpg", 4, 1, LEFT, (0, 0, 5, 5))
    assert score(newer, tmp_path).figure("top1_accuracy").value == 0
    (tmp_path / "truth.csv").write_text(TRUTH)
    truth = read_truth(str(tmp_path / "truth.csv"), STORAGE)
    with camlake.open(str(tmp_path / "out")) as lake:
        assert evaluate(lake, truth, model="older-12345678").figure("top1_accuracy").value == 0.25
        with pytest.raises(UsageError, match=r"--model 'resnet50': this output has older-12345678, tiny-12345678"):
            evaluate(lake, truth, model="resnet50")


def test_a_truth_of_other_images_shows_one_of_each(tmp_path: Path) -> None:
    truth = "file,class_id,xmin,ymin,xmax,ymax\nimg/q.jpg,1,0,0,1,1\n"
    with pytest.raises(
        UsageError, match=r"none of the truth's 1 images, like 'img/q.jpg', .* output's 4, like 's3://b/x/"
    ):
        score(example(), tmp_path, truth)


def test_a_truth_with_labels_of_another_vocabulary_shows_one_of_each(tmp_path: Path) -> None:
    truth = "file,label,xmin,ymin,xmax,ymax\na.jpg,n02391049,0,0,1,1\n"
    with pytest.raises(UsageError, match=r"labels, like 'n02391049', is one of the output's, like 'cat'"):
        score(example(), tmp_path, truth)


def job(folder: Path, **options: Any) -> str:
    """Run the job and return what it printed."""
    (folder / "truth.csv").write_text(TRUTH)
    screen = Screen()
    screen.out = Console(file=io.StringIO(), width=200)
    values = {"out": str(folder / "out"), "truth": str(folder / "truth.csv"), **options}
    run(EvaluateConfig.resolve(values), screen)
    return screen.out.file.getvalue()


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


def test_a_class_name_is_no_markdown(scores: Scores) -> None:
    odd = ClassScore("a|b<script>\n*c*", 1, Figure("top1_accuracy", None, 1, 1, 1))
    page = Scores(**{**vars(scores), "classes": (odd,)}).markdown()
    assert r"| a\|b&lt;script&gt; \*c\* | 1 |" in page


def test_failures_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no camlake output here"):
        job(tmp_path)
    with pytest.raises(InputError, match="not found"):
        job(tmp_path, truth=str(tmp_path / "none.csv"))
    with pytest.raises(UsageError, match="--iou 'closed'"):
        job(tmp_path, iou="closed")


def test_output_truth_and_report_in_a_bucket(s3: Any, tmp_path: Path) -> None:
    bucket = s3.bucket()
    storage = s3.storage
    example().write(f"s3://{bucket}/out", storage=storage)
    s3.client.put_object(Bucket=bucket, Key="truth.csv", Body=TRUTH.encode())
    job(tmp_path, out=f"s3://{bucket}/out", truth=f"s3://{bucket}/truth.csv", endpoint_url=storage.endpoint_url)
    assert {"out/_reports/scores.json", "out/_reports/scores.md"} <= set(s3.keys(bucket))
