"""Tells species apart after it has found the animal: box of an object head, crop, features of the crop, species head.

The object head is fitted on pictures with a butterfly against the same without it, and never sees a box. The table
compares heads for the species on the features of the whole picture, of the crop, and of the true box.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from jobs.recipes.recipe_steps import PictureResult, RecipeConfig, RecipePictures, annotated, fitted, look, mean, report
from jobs.terminal.console import Screen, main, verb
from schemas.options.config import option

LABEL = "butterfly"
_SIDE_PX = 448
_MARGIN = 0.15
"""Share of a box's sides that a crop has more on each side."""


class FineGrainedConfig(RecipeConfig):
    """The options of the recipe."""

    train: int = option(160, "pictures of a seed for the fit", "Options", ge=40)
    test: int = option(80, "pictures of a seed for the test", "Options", ge=10)


def run(config: FineGrainedConfig, screen: Screen) -> None:
    """Render, find, crop, annotate again, fit, score and report."""
    from pipeline.arrays.metrics import paired_iou

    pictures, species = render(config)
    found = look(pictures, LABEL, config, screen, everywhere=True)
    boxes = {one.name: box_of(one) for one in found if one.name in pictures.positive}
    crops = {"crop by the object head": boxes, "true box": {name: box[0] for name, box in pictures.boxes.items()}}
    right = {"full picture": accuracy(Path(config.out) / "labels", pictures, species, "full", config, screen)}
    for number, (name, of) in enumerate(crops.items()):
        folder, labels = (Path(config.out) / f"{kind}-{number}" for kind in ("crops", "crop-labels"))
        cut(pictures, of, folder)
        annotated(folder, labels, config, screen)
        right[name] = accuracy(labels, pictures, species, folder.name, config, screen)
    tests = [name for names in pictures.tests for name in names if name in pictures.positive]
    own, true = (np.stack([of[name] for name in tests]) for of in crops.values())
    overlap = paired_iou(own, true)
    figures: dict[str, Any] = {"test pictures": len(tests), "IoU of the boxes": mean(overlap)}
    figures |= {f"accuracy, {name}": mean(values) for name, values in right.items()}
    whole = right["full picture"].astype(int)
    figures |= {f"{name} − full picture": mean(right[name].astype(int) - whole) for name in crops}
    tested = {name for names in pictures.tests for name in names}
    report("fine-grained recognition", [one for one in found if one.name in tested], pictures, figures, config, screen)


def render(config: FineGrainedConfig) -> tuple[RecipePictures, dict[str, str]]:
    """Render the pictures of all seeds, and return them with the species of each picture with a butterfly."""
    from pipeline.images.synthetic.species import SPECIES, render_butterfly, species_names

    pictures, species = RecipePictures.under(config.out), {}
    for seed in range(config.seeds):
        parts: list[list[str]] = [[], []]
        for number in range(config.train + config.test):
            kind = number % len(SPECIES)
            drawn = render_butterfly(np.random.default_rng((seed, number)), kind, _SIDE_PX)
            name = pictures.save(f"{seed}-{number:04d}-with", drawn.pixels)
            pictures.positive.add(name)
            pictures.boxes[name], species[name] = drawn.box_xyxy[None], species_names()[kind]
            parts[number >= config.train] += [name, pictures.save(f"{seed}-{number:04d}-without", drawn.ground)]
        pictures.add_seed(*parts)
    return pictures, species


def box_of(one: PictureResult) -> NDArray[np.float64]:
    """Return the box (4,) of a map; the whole picture where the map is constant."""
    found = one.box
    return np.array([0.0, 0, one.size_hw[1], one.size_hw[0]]) if found is None else found


def cut(pictures: RecipePictures, boxes: dict[str, NDArray[np.float64]], folder: Path) -> None:
    """Write the crops of ``boxes`` with a margin, as files of the same names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x0, y0, x1, y1) in boxes.items():
        pixels = cv2.imread(str(pictures.folder / name))
        assert pixels is not None
        more_x, more_y = _MARGIN * (x1 - x0), _MARGIN * (y1 - y0)
        rows = slice(max(0, int(y0 - more_y)), int(np.ceil(y1 + more_y)))
        columns = slice(max(0, int(x0 - more_x)), int(np.ceil(x1 + more_x)))
        cv2.imwrite(str(folder / name), pixels[rows, columns], [cv2.IMWRITE_JPEG_QUALITY, 95])


def accuracy(
    labels: Path,
    pictures: RecipePictures,
    species: dict[str, str],
    name: str,
    config: FineGrainedConfig,
    screen: Screen,
) -> NDArray[np.bool_]:
    """Return (T,) whether the species head of each seed is right, for the test pictures with a butterfly."""
    from pipeline import camlake

    with camlake.open(str(labels)) as lake:
        rows = lake.sql("SELECT uri, feature FROM features JOIN images USING (image_id, run_id)").fetchall()
    vectors = {uri.rpartition("/")[2]: np.array(feature, np.float32) for uri, feature in rows}
    right: list[bool] = []
    for seed, names in enumerate(pictures.names):
        path = Path(config.out) / f"species-{name}-{seed}.csv"
        head = fitted(labels, path, [(one, species[one]) for one in names if one in species], screen)
        tests = [one for one in pictures.tests[seed] if one in species]
        best = head.logits(np.stack([vectors[one] for one in tests])).argmax(axis=1)
        right += [head.card.classes[at] == species[one] for at, one in zip(best, tests, strict=True)]
    return np.array(right)


command = verb(
    "Find rendered butterflies by an object head, crop them, and tell their species apart.",
    FineGrainedConfig,
    run,
    "python -m jobs.recipes.fine_grained --out butterflies",
)

if __name__ == "__main__":
    main(command)
