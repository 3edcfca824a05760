"""Draw maps side by side: rows are test scenes, columns are finished networks."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.outputs.drawing import draw_boxes, overlay_heat
from tests.benchmarks.study.learning import make_network
from tests.benchmarks.study.results import is_finished, load_weights
from tests.benchmarks.study.scene_sets import SceneSet, load
from tests.benchmarks.study.scoring import class_maps, paper_boxes, regressed
from tests.benchmarks.study.study_config import StudyConfig
from tests.benchmarks.study.study_networks import StudyNetwork

ROWS = 5
GAP_PX, HEAD_PX = 3, 40
COLOURS = 96
"""Number of colours in the PNG file's palette: the file is a third as large, without a visible difference."""
INK, GROUND = (40, 44, 52), "white"

Pixels = NDArray[np.uint8]


def maps_png(config: StudyConfig, entries: tuple[StudyNetwork, ...], folder: Path) -> bytes:
    """Return the PNG file of the first scenes with different labels; each entry has its first finished seed."""
    test = load(folder / "scenes", "test")
    few = SceneSet(test.pixels[:ROWS], test.labels[:ROWS], test.boxes[:ROWS])
    columns = [("scene", [draw_boxes(pixels, np.empty((0, 4)), box[None]) for pixels, box in _each(few)])]
    columns += [(entry.title, _column(config, entry, folder, few)) for entry in entries]
    side = config.size
    sheet = Image.new("RGB", (len(columns) * (side + GAP_PX), HEAD_PX + len(few) * (side + GAP_PX)), GROUND)
    ink, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for column, (title, tiles) in enumerate(columns):
        left = column * (side + GAP_PX)
        ink.multiline_text((left + 2, 4), _wrapped(title), fill=INK, font=font, spacing=2)
        for row, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile), (left, HEAD_PX + row * (side + GAP_PX)))
    buffer = io.BytesIO()
    sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _column(config: StudyConfig, entry: StudyNetwork, folder: Path, few: SceneSet) -> list[Pixels]:
    """Draw the box of the entry's first way of localizing, its map and the true box on each scene."""
    seed = next(seed for seed in range(config.seeds) if is_finished(folder, entry, seed))
    module, network = make_network(config, entry)
    load_weights(folder, entry, seed, module)
    network.eval()
    way = entry.ways[0]
    if way == "regress":
        boxes = regressed(network, few, "cpu")
        return [draw_boxes(pixels, boxes[i : i + 1], true[None]) for i, (pixels, true) in enumerate(_each(few))]
    maps = class_maps(network, way, few, "cpu")
    boxes = paper_boxes(maps, config.size)
    return [
        draw_boxes(overlay_heat(pixels, maps[i]), boxes[i : i + 1], true[None])
        for i, (pixels, true) in enumerate(_each(few))
    ]


def _each(scenes: SceneSet) -> list[tuple[Pixels, NDArray[np.float64]]]:
    return list(zip(np.asarray(scenes.pixels), scenes.boxes, strict=True))


def _wrapped(title: str) -> str:
    """Return a title, on two lines where it has more words than the network's name."""
    for word in (" with ", " from "):
        title = title.replace(word, f"\n{word.strip()} ")
    return title
