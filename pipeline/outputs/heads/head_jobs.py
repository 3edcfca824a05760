"""The actions of ``camlake head``: fit a head on the features of an output, and apply it to their rows."""

import io
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.annotate.reporter import Reporter
from pipeline.models.weights.head_file import Head, HeadCard, Kind, probabilities
from pipeline.outputs.feature_rows import vectors_of
from pipeline.outputs.heads.features import (
    MOST_ROWS,
    FeatureSource,
    TrainingRows,
    feature_batches,
    training_rows,
)
from pipeline.outputs.heads.fitting import HELD_OUT_ROWS, LEAST, ClassFit, Standardized, fit_class
from pipeline.storage.truth.image_labels import ImageLabels
from schemas.errors import ModelError, UsageError

PROBABILITIES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("prob", pa.float32(), nullable=False),
        pa.field("positive", pa.bool_(), nullable=False),
    ]
)
"""A row is an image and a class of the head; ``positive``: prob reaches the class's threshold of the head."""
SUFFIXES = (".parquet", ".csv")


def fit(source: FeatureSource, labels: ImageLabels, kind: Kind, reporter: Reporter) -> Head:
    """Return a head for the classes of ``labels``, fitted on the features of ``source``; what is left out is reported.

    Raises UsageError where no class has enough images.
    """
    rows, say = training_rows(source, labels), reporter.say
    _say_rows(rows, labels, source.where, say)
    counts = rows.positive.sum(axis=0)
    few = [c for c in range(len(labels.classes)) if min(counts[c], len(rows.positive) - counts[c]) < LEAST]
    kept = [c for c in range(len(labels.classes)) if c not in set(few)]
    if few:
        shown = f"{labels.classes[few[0]]!r} with {counts[few[0]]} of {len(rows.positive)} images"
        if not kept:
            raise UsageError(f"--labels: {shown}; a class needs {LEAST} images that have it and {LEAST} that don't")
        say(f"{len(few)} classes left out, like {shown}: each needs {LEAST} that have it and {LEAST} that don't")
    if not np.isfinite(rows.features).all():
        raise ModelError(f"{source.where}: features hold NaN or infinity; `camlake verify` says where")
    standardized, fits = Standardized(rows.features), []
    with reporter.progress("fitting classes", len(kept)) as advance:
        for class_id in kept:
            fits.append(fit_class(standardized, rows.positive[:, class_id], kind))
            advance(len(fits))
    slow = [labels.classes[c] for c, one in zip(kept, fits, strict=True) if not one.converged]
    if slow:
        say(f"{len(slow)} classes did not come to rest, like {slow[0]!r}; the weights are those of the last step")
    facts = {
        "rows": len(rows.positive),
        "unlabelled_as_negatives": rows.unlabelled,
        "classes_left_out": [labels.classes[c] for c in few],
        "held_out_rows": min(HELD_OUT_ROWS, len(rows.positive)),
        "classes": {labels.classes[c]: _facts(one) for c, one in zip(kept, fits, strict=True)},
    }
    names = tuple(labels.classes[c] for c in kept)
    card = HeadCard(source.run.model, source.run.lineage.backbone_digest, names, kind, labels.digest, facts)
    return Head(
        card,
        np.stack([one.weight for one in fits]),
        np.array([one.bias for one in fits], np.float32),
        np.array([one.threshold for one in fits], np.float32),
    )


def _say_rows(rows: TrainingRows, labels: ImageLabels, where: str, say: Callable[[str], None]) -> None:
    labelled = len(rows.positive) - rows.unlabelled
    say(f"{labelled} labelled images with features, {len(labels.classes)} classes")
    if rows.lost:
        say(f"{rows.lost} images of the labels are not in {where}")
    if rows.left_out:
        say(f"{rows.left_out} labelled images left out: a sample of {MOST_ROWS} is taken")
    if rows.unlabelled:
        say(f"all labelled images have the one class: {rows.unlabelled} unlabelled images count as those without it")


def _facts(one: ClassFit) -> dict[str, object]:
    """Return the figures of a class in JSON's types; NaN becomes null."""
    shown = {
        name: [None if math.isnan(value) else round(value, 5) for value in figure]
        for name, figure in one.figures.items()
    }
    numbers = {name: value for name, value in asdict(one).items() if name in {"positives", "negatives", "converged"}}
    return {**numbers, "strength": one.strength, "threshold": one.threshold, **shown}


def apply(source: FeatureSource, head: Head, suffix: str) -> tuple[bytes, int, dict[str, int]]:
    """Return a table of PROBABILITIES as a file, the number of images, and how many are positive of each class.

    ``suffix`` is one of SUFFIXES. The features are read in batches; the file is held in memory.
    """
    sink, images = io.BytesIO(), 0
    positives = np.zeros(len(head.card.classes), np.int64)
    parquet = suffix == ".parquet"
    with (
        pq.ParquetWriter(sink, PROBABILITIES, compression="zstd")
        if parquet
        else csv.CSVWriter(sink, PROBABILITIES) as out
    ):
        for rows in feature_batches(source):
            probs = probabilities(head.logits(vectors_of(rows)))
            flagged = probs >= head.threshold
            out.write_table(_long_table(rows, head, probs, flagged))
            images, positives = images + len(rows), positives + flagged.sum(axis=0)
    return sink.getvalue(), images, dict(zip(head.card.classes, positives.tolist(), strict=True))


def _long_table(rows: pa.Table, head: Head, probs: np.ndarray, flagged: np.ndarray) -> pa.Table:
    images, classes = probs.shape
    image = pa.array(np.repeat(np.arange(images), classes))
    class_id = pa.array(np.tile(np.arange(classes, dtype=np.int32), images))
    columns = {
        "image_id": rows["image_id"].take(image),
        "uri": rows["uri"].take(image),
        "class_id": class_id,
        "label": pa.array(head.card.classes, pa.string()).take(class_id),
        "prob": pa.array(probs.reshape(-1)),
        "positive": pa.array(flagged.reshape(-1)),
    }
    return pa.table(columns, schema=PROBABILITIES)
