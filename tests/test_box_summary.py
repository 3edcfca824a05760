"""What a user is told of the boxes of a run."""

from pipeline.outputs.box_summary import BoxSummary, summarize_boxes, summary_lines
from tests.fake_lake import FakeLake


def test_the_figures_are_those_of_the_current_boxes(tmp_path):
    lake = FakeLake(str(tmp_path / "labels"))
    manifest = lake.run({"a": "v1", "b": "v1"}, {})
    found = summarize_boxes(lake.fs, lake.root, manifest.files)
    with_score = found._replace(median_score=0.25)
    assert (found.boxes, found.unlikely, found.median_score) == (manifest.counts.boxes, 0.0, None)
    assert "no box_score" in found.sentence
    assert "median box_score 0.25" in with_score.sentence
    assert summary_lines(lake.fs, lake.root, manifest)[0] == found.sentence
    assert summarize_boxes(lake.fs, lake.root, ()) is None


def test_advice_is_given_where_boxes_are_bad():
    fine, large, unlikely = (BoxSummary(10, *shares, 0.3) for shares in ((0.1, 0.1), (0.5, 0.1), (0.1, 0.7)))
    assert fine.advice(foreground=False) == ""
    assert "--foreground" in large.advice(foreground=False)
    assert "another --threshold or network" in large.advice(foreground=True)
    assert "--min-prob 0.05" in unlikely.advice(foreground=False)
    assert large.sentence == (
        "boxes: 50% cover more than 90% of the picture, 10% are of classes under 5%, median box_score 0.30"
    )
