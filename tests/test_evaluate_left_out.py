"""What an output or a truth is too poor for is left out of the scores, said, or refused."""

from pathlib import Path

import pytest

from pipeline.outputs import reader as camlake
from pipeline.outputs.evaluate import evaluate
from pipeline.storage.truth.truth import read_truth
from schemas.errors import UsageError
from tests.scoring import LEFT, STORAGE, TRUTH, Output, example, score


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
    assert any(note.startswith("Top-5 accuracy and localization are left out") for note in scores.notes)


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
    with camlake.open(str(tmp_path / "out"), model="*") as lake:
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


def test_the_heuristics_top5_localization_is_not_called_left_out(tmp_path: Path) -> None:
    output = example()
    output.settings |= {"box_rule": "heuristic", "threshold": [0.2, 0.5], "outputs": ["boxes"]}
    scores = score(output, tmp_path)
    assert {"top5_localization"} == {figure.metric for figure in scores.figures if figure.metric.startswith("top5")} - {
        "top5_localization_error"
    }
    assert "Top-5 accuracy is left out: it needs heatmaps with --topk 5 or more, or --classes." in scores.notes


def test_a_pair_without_rows_is_wrong_only_where_its_class_counts(tmp_path: Path) -> None:
    output = example()
    output.settings |= {"method": "regress", "threshold": [0.0], "min_area": 0.0, "outputs": ["boxes"], "topk": 2}
    scores = score(output, tmp_path)
    assert scores.figure("gt_known").value == 0.75, "the box of d.jpg, whose class has no row, is right, as b.jpg's"
    assert scores.figure("top1_localization").value == 0.25
    assert any("count as wrong in accuracy and localization; the other figures score" in note for note in scores.notes)
    assert (
        "Top-5 accuracy and localization are left out: they need --topk 5 or more and no --min-area, or --classes."
        in (scores.notes)
    )


def test_without_boxes_only_top5_accuracy_is_called_left_out(tmp_path: Path) -> None:
    output = example()
    output.settings |= {"outputs": ["heatmaps"], "topk": 3}
    assert any(note.startswith("Top-5 accuracy is left out") for note in score(output, tmp_path).notes)
