"""Answers questions about pictures by a linear head on features and the words of the question, and shows why.

Three kinds of questions: what is in the picture, whether something is, and on which side it is. Each answer is a class
of one head on the pooled features beside a bag of words; the part of its weights that belongs to the features gives the
map of the answer. Such a head adds what it sees and what it is asked, and pooling drops places. So the table says of
each kind what the question alone answers, what the head does, and what features pooled over the left and the right half
of the feature maps would.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.recipes.recipe_steps import PictureResult, RecipeConfig, RecipePictures, annotated, mean, points_in, report
from jobs.terminal.console import Screen, main, verb
from schemas.options.config import option

KINDS = ("what", "whether", "which side")
_SIDE_PX = 336
_SETS = ("question alone", "features", "halves")
Floats = NDArray[np.float32]


class VisualQuestionsConfig(RecipeConfig):
    """The options of the recipe."""

    train: int = option(240, "pictures of a seed for the fit", "Options", ge=40)
    test: int = option(70, "pictures of a seed for the test", "Options", ge=10)


class Question(NamedTuple):
    """A question about a picture."""

    name: str
    kind: str
    words: tuple[str, ...]
    answer: str


class Answered(NamedTuple):
    """The answer to a test question."""

    question: Question
    answer: str
    weight: Floats
    """(K,): the part of the answer's weights that belongs to the features, or to both halves of them."""


def run(config: VisualQuestionsConfig, screen: Screen) -> None:
    """Render, annotate, fit, answer, score and report."""
    pictures, questions = render(config)
    out = Path(config.out) / "labels"
    annotated(pictures.folder, out, config, screen)
    rows = rows_of(out)
    given: dict[str, dict[str, Floats]] = {
        "question alone": {name: np.empty(0, np.float32) for name in rows},
        "features": {name: np.array(row["feature"], np.float32) for name, row in rows.items()},
        "halves": {name: halves_of(row) for name, row in rows.items()},
    }
    answered: dict[str, list[Answered]] = {name: [] for name in _SETS}
    for seed in range(config.seeds):
        parts = [[one for one in questions if one.name in set(of[seed])] for of in (pictures.names, pictures.tests)]
        for name, features in given.items():
            screen.say(f"seed {seed}: {len(parts[0])} questions, {name}")
            answered[name] += answer(parts[0], parts[1], features)
    found = look_at(answered["features"], pictures, rows)
    figures = table(answered, found, pictures)
    value = "1 where the answer to what is in the picture is right"
    report("visual question answering", found, pictures, figures, config, screen, value)


def render(config: VisualQuestionsConfig) -> tuple[RecipePictures, list[Question]]:
    """Render the pictures of all seeds, each with a question of each kind."""
    from pipeline.images.synthetic.scenes import CLASSES, render_scene

    pictures, questions = RecipePictures.under(config.out), []
    for seed in range(config.seeds):
        parts: list[list[str]] = [[], []]
        for number in range(config.train + config.test):
            rng = np.random.default_rng((seed, number))
            scene = render_scene(rng, number % len(CLASSES), (_SIDE_PX, _SIDE_PX))
            name = pictures.save(f"{seed}-{number:04d}", scene.pixels)
            pictures.positive.add(name)
            pictures.boxes[name] = scene.boxes_xyxy.astype(np.float64)
            parts[number >= config.train].append(name)
            shown = CLASSES[scene.label]
            asked = shown if rng.random() < 0.5 else CLASSES[rng.integers(len(CLASSES))]
            side = "left" if scene.boxes_xyxy[0, ::2].mean() < _SIDE_PX / 2 else "right"
            questions += [
                Question(name, "what", ("what", "is", "in", "the", "picture"), shown),
                Question(
                    name, "whether", ("is", "a", asked, "in", "the", "picture"), "yes" if asked == shown else "no"
                ),
                Question(name, "which side", ("on", "which", "side", "is", "it"), side),
            ]
        pictures.add_seed(*parts)
    return pictures, questions


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """Return by file name the features and the codes of all pictures."""
    from pipeline import camlake

    joins = " JOIN ".join(f"{table} USING (image_id, run_id)" for table in ("features", "feature_maps"))
    with camlake.open(str(out)) as lake:
        rows = lake.sql(f"SELECT uri, feature, feature_maps.* FROM images JOIN {joins}").to_arrow_table().to_pylist()
    return {row["uri"].rpartition("/")[2]: row for row in rows}


def halves_of(row: dict[str, Any]) -> Floats:
    """Return the features (2 K,) of the left and of the right half of a picture; a middle column belongs to neither."""
    from pipeline import camlake

    maps = camlake.feature_map(row, row)
    middle = maps.shape[2] // 2
    sides = maps[:, :, :middle], maps[:, :, -middle:]
    return np.concatenate([side.mean((1, 2)) for side in sides]).astype(np.float32)


def answer(train: Sequence[Question], test: Sequence[Question], features: dict[str, Floats]) -> list[Answered]:
    """Fit a linear layer for each answer on features and words, and return the answers to the test questions."""
    from pipeline.outputs.heads.fitting import Standardized, fit_class

    vocabulary = sorted({word for one in train for word in one.words})
    answers = sorted({one.answer for one in train})

    def inputs(questions: Sequence[Question]) -> Floats:
        words = np.array([[word in one.words for word in vocabulary] for one in questions], np.float32)
        return np.concatenate([np.stack([features[one.name] for one in questions]), words], axis=1)

    rows, given = Standardized(inputs(train)), np.array([one.answer for one in train])
    fits = [fit_class(rows, given == one, "logistic") for one in answers]
    logits = inputs(test) @ np.stack([one.weight for one in fits]).T + np.array([one.bias for one in fits])
    size = len(next(iter(features.values())))
    return [
        Answered(one, answers[best], fits[best].weight[:size])
        for one, best in zip(test, logits.argmax(axis=1), strict=True)
    ]


def look_at(
    answered: Sequence[Answered], pictures: RecipePictures, rows: dict[str, dict[str, Any]]
) -> list[PictureResult]:
    """Return the map of the answer to each question of the kind what."""
    from pipeline import camlake

    wanted, found = {one.question.name: one for one in answered if one.question.kind == "what"}, []
    for name, row in rows.items():
        if name in wanted:
            heat = np.tensordot(wanted[name].weight, camlake.feature_map(row, row), 1).astype(np.float32)
            right = float(wanted[name].answer == wanted[name].question.answer)
            found.append(PictureResult(name, int(name.partition("-")[0]), right, heat, pictures.size_hw(name)))
    return found


def table(
    answered: dict[str, list[Answered]], found: Sequence[PictureResult], pictures: RecipePictures
) -> dict[str, Any]:
    """Return accuracies by kind and inputs, and where the maps of the answers to what-questions point."""
    figures: dict[str, Any] = {"questions of each kind": len(found)}
    right = {
        (name, kind): np.array([one.answer == one.question.answer for one in of if one.question.kind == kind])
        for name, of in answered.items()
        for kind in KINDS
    }
    for kind in KINDS:
        figures |= {f"{kind}: accuracy, {name}": mean(right[name, kind]) for name in _SETS}
        difference = right["features", kind].astype(int) - right["question alone", kind]
        figures[f"{kind}: features − question alone"] = mean(difference)
    hits = np.array([points_in(one.point_xy, pictures.boxes[one.name]) for one in found])
    centre = np.array([points_in((_SIDE_PX / 2, _SIDE_PX / 2), pictures.boxes[one.name]) for one in found])
    figures["what: the answer's map points into the object"] = mean(hits)
    figures["what: the centre in the object"] = mean(centre)
    figures["what: pointing − centre"] = mean(hits.astype(int) - centre)
    return figures


command = verb(
    "Answer questions about rendered pictures by a head on features and words, and show the map of the answer.",
    VisualQuestionsConfig,
    run,
    "python -m jobs.recipes.visual_questions --out questions",
)

if __name__ == "__main__":
    main(command)
