"""Finds *mirror in lake*: a head is fitted on rendered lakes that mirror an object and on the same without the mirror.

The heads never see where the reflections are. Their maps must point at them, better than the centre of the picture and
the centre of its lower half, where the water is.
"""

import numpy as np

from jobs.recipes.recipe_steps import RecipeConfig, RecipePictures, look, report, scores
from jobs.terminal.console import Screen, main, verb

LABEL = "mirror in lake"
BASELINES = {"the centre": (0.5, 0.5), "the lower half's centre": (0.5, 0.75)}
_SIDE_PX = 336
"""Side of the rendered pictures."""


def run(config: RecipeConfig, screen: Screen) -> None:
    """Render, annotate, fit, score and report."""
    pictures = render(config)
    screen.say(f"{sum(map(len, pictures.names + pictures.tests))} pictures rendered")
    found = look(pictures, LABEL, config, screen)
    report(LABEL, found, pictures, scores(found, pictures, BASELINES), config, screen)


def render(config: RecipeConfig) -> RecipePictures:
    """Render the lakes of all seeds."""
    from pipeline.images.synthetic.reflections import render_lakes

    pictures = RecipePictures.under(config.out)
    for seed in range(config.seeds):
        parts: list[list[str]] = [[], []]
        for number in range(config.train + config.test):
            pair, name = render_lakes(np.random.default_rng((seed, number)), _SIDE_PX), f"{seed}-{number:04d}"
            mirrored = pictures.save(f"{name}-mirrored", pair.mirrored)
            plain = pictures.save(f"{name}-plain", pair.plain)
            pictures.positive.add(mirrored)
            pictures.boxes[mirrored] = pair.box_xyxy[None]
            parts[number >= config.train] += [mirrored, plain]
        pictures.add_seed(*parts)
    return pictures


command = verb(
    "Fit heads to rendered reflections in lakes, and score where their maps point.",
    RecipeConfig,
    run,
    "python -m jobs.recipes.mirror_in_lake --out mirror",
)

if __name__ == "__main__":
    main(command)
