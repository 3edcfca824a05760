"""What a user is told of the boxes of a run."""

from pipeline.outputs.box_summary import BoxSummary, summarize_boxes, summary_lines
from schemas.options.config import StorageConfig
from tests.fake_lake import FakeLake
from tests.faulty_s3 import faulty


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


def test_a_run_that_is_done_does_not_fail_because_its_boxes_cannot_be_read(s3):
    bucket = s3.bucket()
    with faulty(s3.endpoint_url) as proxy:
        lake = FakeLake(f"s3://{bucket}/labels", StorageConfig(endpoint_url=proxy.url))
        manifest = lake.run({"a": "v1"}, {})
        whole = summary_lines(lake.fs, lake.root, manifest)
        proxy.fault = lambda request: "short" if len(proxy.failed) < 3 and ".parquet" in request.path else None
        assert summary_lines(lake.fs, lake.root, manifest) == whole
        assert len(proxy.failed) == 3
    for path in lake.fs.glob(f"{lake.root}/boxes/**/*.parquet"):
        s3.client.put_object(Bucket=bucket, Key=path.partition("/")[2], Body=b"no Parquet")
    lake = FakeLake(f"s3://{bucket}/labels", s3.storage)
    (line,) = summary_lines(lake.fs, lake.root, manifest)
    assert line.startswith(f"boxes: no summary, all is committed: {bucket}/labels can't be read: ")


def test_advice_is_given_where_boxes_are_bad():
    fine, large, unlikely = (BoxSummary(10, *shares, 0.3) for shares in ((0.1, 0.1), (0.5, 0.1), (0.1, 0.7)))
    assert fine.advice(foreground=False) == ""
    assert "--foreground" in large.advice(foreground=False)
    assert "another --threshold or network" in large.advice(foreground=True)
    assert "--min-prob 0.05" in unlikely.advice(foreground=False)
    assert large.sentence == (
        "boxes: 50% cover more than 90% of the picture, 10% are of classes under 5%, median box_score 0.30"
    )
