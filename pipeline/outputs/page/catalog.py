"""All images of one model as ``camlake view`` shows them: search, similar pictures, and each picture itself."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pipeline.outputs.export.plans import add_plans
from pipeline.outputs.page.overview import facts
from pipeline.outputs.page.page_entries import Entry, entries_of
from pipeline.outputs.page.page_pictures import read_pictures, webp
from pipeline.outputs.page.report import Gallery, render_page
from pipeline.outputs.page.rules import cutting_rule
from pipeline.outputs.page.sample import FIRST_BOXES
from pipeline.outputs.reader import Lake
from schemas.errors import RejectedImage
from schemas.options.reading import ViewConfig

Size = Literal["small", "large"]

SIDES_PX: dict[Size, int] = {"small": 480, "large": 1600}
NEAREST = 12
"""Similar pictures that a page shows."""
ORDERS = {
    "sample": "image_id",
    "score-down": "score DESC, image_id",
    "score-up": "score, image_id",
    "prob-down": "top1_prob DESC, image_id",
    "prob-up": "top1_prob, image_id",
    "area-down": "area DESC, image_id",
    "area-up": "area, image_id",
    "uri": "uri",
}
"""The orders that a reader may choose, by the names of the page's control."""

_SHOWN = "camlake_shown"
_MAKE = f"""
CREATE TABLE {_SHOWN} AS
SELECT images.*, coalesce(score, 0) AS score, coalesce(area, 0) AS area, coalesce(labels, []) AS labels,
    lower(concat_ws(chr(10), uri, array_to_string(labels, chr(10)))) AS text
FROM (SELECT * FROM images WHERE model = $model) AS images LEFT JOIN ({FIRST_BOXES}) AS first USING (image_id)
"""
_WHERE = """
score BETWEEN $least AND $most AND ($label = '' OR list_contains(labels, $label))
AND ($text = '' OR contains(text, lower($text)))
"""
_NEAR = """
SELECT image_id, similarity FROM (
    SELECT image_id, list_cosine_similarity(
        feature::FLOAT[], (SELECT feature::FLOAT[] FROM features WHERE model = $model AND image_id = $image_id)
    ) AS similarity FROM features WHERE model = $model AND image_id <> $image_id
) WHERE isfinite(similarity) ORDER BY similarity DESC, image_id LIMIT $nearest
"""


class Query(NamedTuple):
    """What a reader looks for."""

    text: str = ""
    """Part of a uri or of the name of a class, in any case."""
    label: str = ""
    """A class that a box must have."""
    least: float = 0.0
    most: float = 1.0
    """Bounds of the first box's score, both included; an image without a box has 0."""
    order: str = "sample"
    """A key of ORDERS."""


class Catalog:
    """One model's images of an output, as they were when it was opened. Several threads may ask at once."""

    def __init__(self, lake: Lake, config: ViewConfig) -> None:
        """Index the images of ``config.model``, by default the newest run's; raises UsageError for an unknown model."""
        manifest = lake.run_of(config.model)
        self.model = manifest.model
        self.runs = runs_seen(lake)
        self._lake, self._storage = lake, config.storage
        self._facts = facts(lake, manifest, config.out, config)
        self._rule = cutting_rule(manifest, config.out, config)
        con = lake.connection()
        con.execute(_MAKE, {"model": self.model})
        add_plans(lake, config.out, config)
        self._total = int(con.execute(f"SELECT count(*) FROM {_SHOWN}").fetchall()[0][0])
        labels = con.execute(f"SELECT DISTINCT unnest(labels) AS label FROM {_SHOWN} ORDER BY label").fetchall()
        self._labels = [label for (label,) in labels]
        self._features = len(lake.relation("features", self.model)) > 1
        self._small = lru_cache(maxsize=2000)(lambda image_id: self._read(image_id, "small"))
        self._large = lru_cache(maxsize=64)(lambda image_id: self._read(image_id, "large"))

    def page(self, nonce: str) -> bytes:
        """Return the page; ``nonce`` allows its scripts to run."""
        gallery = Gallery([], self._rule, self._labels, self._total, live=True, features=self._features)
        return render_page(**self._facts, gallery=gallery, nonce=nonce)

    def find(self, query: Query, offset: int, count: int) -> dict[str, Any]:
        """Return the number of images that fit as ``total``, and ``count`` entries from ``offset`` on as ``images``."""
        con = self._lake.connection().cursor()
        values = query._asdict()
        order = ORDERS[values.pop("order")]
        ((total,),) = con.execute(f"SELECT count(*) FROM {_SHOWN} WHERE {_WHERE}", values).fetchall()
        ids = con.execute(
            f"SELECT image_id FROM {_SHOWN} WHERE {_WHERE} ORDER BY {order} LIMIT $count OFFSET $offset",
            values | {"count": count, "offset": offset},
        ).fetchall()
        return {"total": total, "images": self._entries([image_id for (image_id,) in ids])}

    def near(self, image_id: str) -> dict[str, Any]:
        """Return the entries of the pictures with the most similar features, as ``images``, with their cosine.

        There is none where the output has no feature of the image.
        """
        con = self._lake.connection().cursor()
        values = {"model": self.model, "image_id": image_id, "nearest": NEAREST}
        found = dict(con.execute(_NEAR, values).fetchall())
        return {"images": [entry | {"similarity": found[entry["id"]]} for entry in self._entries([*found])]}

    def picture(self, image_id: str, size: Size) -> bytes:
        """Return an image of the output as WebP; raises RejectedImage where there is none or it can't be read."""
        return (self._small if size == "small" else self._large)(image_id)

    def _entries(self, ids: list[str]) -> list[Entry]:
        return entries_of(self._lake.connection().cursor(), self.model, ids, images=_SHOWN)

    def _read(self, image_id: str, size: Size) -> bytes:
        side_px = SIDES_PX[size]
        con = self._lake.connection().cursor()
        ((_, found),) = read_pictures(
            con, self.model, [image_id], self._storage, side_px, lambda one: webp(one.pixels, side_px), _SHOWN
        )
        if isinstance(found, RejectedImage):
            raise found
        return found


def runs_seen(lake: Lake) -> list[tuple[str, int]]:
    """Return what tells an output from a later state of it: its runs and the numbers of their files."""
    return [(run.run_id, len(run.files)) for run in lake.runs]
