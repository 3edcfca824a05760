"""Chooses the pictures of a page: every class has its turn, and in a class every score and every size of box.

The choice follows from the rows alone. The same output gives the same pictures, and new images move few of them.
"""

from pipeline.outputs.reader import Lake

SCORE_BINS = 4
SIZE_BINS = 4

FIRST_BOXES = """
SELECT image_id, arg_min(score, place) AS score, arg_min(area_frac, place) AS area,
    list_sort(list(DISTINCT label)) AS labels
FROM (
    SELECT image_id, coalesce(box_score, class_prob) AS score, area_frac, label, [rank, threshold, component] AS place
    FROM boxes WHERE model = $model
) GROUP BY image_id
"""
"""For each image with a box: score and size of its first box, and the classes of all of its boxes."""

_SAMPLE = f"""
WITH first AS ({FIRST_BOXES}), cells AS (
    SELECT images.image_id, top1_class_id AS class,
        row_number() OVER (
            PARTITION BY
                top1_class_id,
                coalesce(least(floor(score * {SCORE_BINS}), {SCORE_BINS - 1}), -1),
                coalesce(least(floor(area * {SIZE_BINS}), {SIZE_BINS - 1}), -1)
            ORDER BY images.image_id
        ) AS turn
    FROM (SELECT image_id, top1_class_id FROM images WHERE model = $model) AS images LEFT JOIN first USING (image_id)
), turns AS (
    SELECT image_id, row_number() OVER (PARTITION BY class ORDER BY turn, image_id) AS turn FROM cells
)
SELECT image_id FROM turns ORDER BY turn, image_id LIMIT $pictures
"""


def sample(lake: Lake, model: str, pictures: int) -> list[str]:
    """Return the image_ids of up to ``pictures`` images of one model, spread over classes, scores and box sizes.

    Classes (of the most probable one of each image) take turns. Within a class the score of the first box, in quarters,
    and its share of the picture, in quarters, take turns; then the image_id decides, which is a hash of the uri.
    """
    rows = lake.sql(_SAMPLE, {"model": model, "pictures": pictures}).fetchall()
    return [image_id for (image_id,) in rows]
