"""Finds words: a head is fitted on pictures with words, the same without them, and the same with shapes in their place.

The pairs keep everything else equal, so that the head can't learn it. The maps of the heads must point at words.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from jobs.recipes.recipe_steps import RecipeConfig, RecipePictures, look, report, scores
from jobs.terminal.console import Screen, main, verb
from schemas.errors import UsageError
from schemas.options.config import option

LABEL = "words"
BASELINES = {"the centre": (0.5, 0.5)}
_SIDE_PX = 448
"""Side of the rendered pictures, and the longer side to which photographs are scaled."""


class TextDetectorConfig(RecipeConfig):
    """The options of the recipe."""

    images: str | None = option(
        None,
        "local folder of photographs to write on, train + test or more; default: rendered ones",
        "Options",
    )
    train: int = option(140, "pictures of a seed for the fit, each with words, with shapes and plain", "Options", ge=10)
    test: int = option(60, "pictures of a seed for the test", "Options", ge=10)
    image_size: int = option(448, "side of the network's input in pixels", "Options", ge=96, le=1024)


def run(config: TextDetectorConfig, screen: Screen) -> None:
    """Render, annotate, fit, score and report."""
    pictures = render(config)
    screen.say(f"{sum(map(len, pictures.names + pictures.tests))} pictures rendered")
    found = look(pictures, LABEL, config, screen)
    report(LABEL, found, pictures, scores(found, pictures, BASELINES), config, screen)


def render(config: TextDetectorConfig) -> RecipePictures:
    """Write on the pictures of all seeds; no picture of a seed is in both fit and test.

    The seeds share the photographs, in other orders and with other words.
    """
    from pipeline.images.synthetic.words import write_words

    ground, pictures = _grounds(config), RecipePictures.under(config.out)
    for seed in range(config.seeds):
        parts: list[list[str]] = [[], []]
        for number in range(config.train + config.test):
            rng, name = np.random.default_rng((seed, number)), f"{seed}-{number:04d}"
            pixels = ground(seed, number)
            written = write_words(rng, pixels)
            words = pictures.save(f"{name}-words", written.words)
            pictures.positive.add(words)
            pictures.boxes[words] = written.boxes_xyxy
            others = [pictures.save(f"{name}-shapes", written.shapes), pictures.save(f"{name}-plain", pixels)]
            parts[number >= config.train] += [words, *others]
        pictures.add_seed(*parts)
    return pictures


def _grounds(config: TextDetectorConfig) -> Callable[[int, int], NDArray[np.uint8]]:
    """Return the function that gives the picture of a seed and a number; raises UsageError for too few photographs."""
    from pipeline.images.synthetic.scenes import CLASSES, render_scene

    needed = config.train + config.test
    if config.images is None:
        size = _SIDE_PX, _SIDE_PX
        return lambda seed, number: (
            render_scene(np.random.default_rng((9, seed, number)), number % len(CLASSES), size).pixels
        )
    kinds = (".jpg", ".jpeg", ".png")
    files = sorted(path for path in Path(config.images).iterdir() if path.suffix.lower() in kinds)
    if len(files) < needed:
        raise UsageError(f"--images {config.images!r}: {len(files)} JPEG and PNG files; allowed: {needed} or more")
    orders = [np.random.default_rng(seed).permutation(len(files)) for seed in range(config.seeds)]

    def photograph(seed: int, number: int) -> NDArray[np.uint8]:
        path = files[orders[seed][number]]
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise UsageError(f"--images: {str(path)!r} can't be decoded; allowed: whole JPEG and PNG files")
        scale = _SIDE_PX / max(pixels.shape[:2])
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)

    return photograph


command = verb(
    "Fit heads to pictures with words against the same without, and score where their maps point.",
    TextDetectorConfig,
    run,
    "python -m jobs.recipes.text_detector --out words",
)

if __name__ == "__main__":
    main(command)
