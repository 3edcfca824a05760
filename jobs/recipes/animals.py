"""Finds animals in photographs: a head is fitted on which of them show one, and never sees a box.

The photographs have classes of ImageNet-1k and boxes; 0 to 397 are its animals. Each seed halves the photographs anew.
"""

import csv
from pathlib import Path

import numpy as np

from jobs.recipes.recipe_steps import RecipeConfig, RecipePictures, look, report, scores
from jobs.terminal.console import Screen, main, verb
from schemas.errors import UsageError
from schemas.options.config import required

LABEL = "animal"
ANIMALS = range(398)
BASELINES = {"the centre": (0.5, 0.5)}


class AnimalsConfig(RecipeConfig):
    """The options of the recipe; ``train`` and ``test`` have no meaning here."""

    images: str = required("local folder of photographs", flag=True)
    truth: str = required(
        "CSV with the columns file, imagenet_classes (numbers, several by ;), xmin, ymin, xmax, ymax: a box a row",
        flag=True,
    )


def run(config: AnimalsConfig, screen: Screen) -> None:
    """Annotate, fit, score and report."""
    pictures = read(config)
    found = look(pictures, LABEL, config, screen)
    report(LABEL, found, pictures, scores(found, pictures, BASELINES), config, screen)


def read(config: AnimalsConfig) -> RecipePictures:
    """Return the photographs with the boxes of their animals; half of them are for the tests of each seed."""
    pictures, boxes = RecipePictures(Path(config.images)), dict[str, list[list[float]]]()
    with Path(config.truth).open(newline="", encoding="utf-8") as source:
        for row in csv.DictReader(source):
            own = boxes.setdefault(Path(row["file"]).name, [])
            if any(int(one) in ANIMALS for one in row["imagenet_classes"].split(";") if one):
                own.append([float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")])
    if missing := [name for name in boxes if not (pictures.folder / name).is_file()]:
        raise UsageError(f"--images {config.images}: has no {missing[0]}, which --truth names")
    pictures.boxes = {name: np.array(own) for name, own in boxes.items() if own}
    pictures.positive = set(pictures.boxes)
    names = sorted(boxes)
    for seed in range(config.seeds):
        order = [names[at] for at in np.random.default_rng(seed).permutation(len(names))]
        pictures.add_seed(order[: len(order) // 2], order[len(order) // 2 :])
    return pictures


command = verb(
    "Fit heads to photographs with animals against those without, and score where their maps point.",
    AnimalsConfig,
    run,
    "python -m jobs.recipes.animals --images PHOTOS --truth annotations.csv --out animals",
)

if __name__ == "__main__":
    main(command)
