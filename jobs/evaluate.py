"""``camlake evaluate``: scores an output against known boxes; no network runs again."""

import json
import posixpath

from jobs.console import Screen, main, verb
from pipeline import camlake
from pipeline.evaluation import evaluate
from pipeline.storage.filesystems import connect, safe_url, store_errors
from pipeline.storage.lake import write_whole
from pipeline.storage.truth import read_truth
from schemas.config import EvaluateConfig, StorageConfig
from schemas.scores import Scores


def run(config: EvaluateConfig, screen: Screen) -> None:
    """Print the scores and write them as scores.json and scores.md."""
    truth = read_truth(config.truth, config)
    with camlake.open(
        config.out, endpoint_url=config.endpoint_url, profile=config.profile, anonymous=config.anonymous
    ) as lake:
        scores = evaluate(lake, truth, model=config.model, convention=config.iou)
    rows = scores.rows()
    title = f"{scores.model}: {scores.images} images, {scores.pairs} pairs of image and class, IoU {config.iou}"
    screen.table(title, list(rows[0]), [list(row.values()) for row in rows])
    for note in scores.notes:
        screen.say(f"note: {note}")
    folder = config.report or f"{config.out.rstrip('/')}/_reports"
    write_scores(scores, folder, config)
    screen.say(f"scores: {safe_url(folder)}/scores.json and scores.md")


def write_scores(scores: Scores, folder: str, storage: StorageConfig) -> None:
    """Write scores.json and scores.md to ``folder``; raises StoreError where that can't be."""
    fs, path = connect(folder, storage)
    with store_errors(f"--report {safe_url(folder)}"):
        write_whole(fs, posixpath.join(path, "scores.json"), json.dumps(scores.document(), indent=1).encode())
        write_whole(fs, posixpath.join(path, "scores.md"), scores.markdown().encode())


command = verb(
    "evaluate",
    EvaluateConfig,
    run,
    "camlake evaluate s3://bucket/labels --truth truth.csv",
)

if __name__ == "__main__":
    main(command)
