"""The endings whose rows a compaction drops: superseded ones, and those that the user lets expire."""

from dataclasses import dataclass
from datetime import datetime

import duckdb
import pyarrow as pa

from pipeline.storage.lake.query import quote
from schemas.tables import DROPPED

_DROPPED_SQL = """
WITH last AS (
    SELECT image_id, max_by({{'run_id': rows_of, 'tombstone': deleted OR rows_of <> run_id}}, decided_at) AS ending,
        max(decided_at) AS decided_at
    FROM all_endings GROUP BY image_id
), dropped AS (
    SELECT run_id, image_id, all_endings.uri, annotated FROM all_endings JOIN last USING (image_id)
    WHERE NOT ending.tombstone AND run_id <> ending.run_id OR {expired}
), counted AS (
    SELECT run_id, image_id, count(*) AS boxes FROM all_boxes SEMI JOIN dropped USING (run_id, image_id) GROUP BY ALL
)
SELECT run_id, image_id, dropped.uri, annotated, reason_code, coalesce(boxes, 0) AS boxes
FROM dropped LEFT JOIN counted USING (run_id, image_id)
LEFT JOIN (SELECT run_id, image_id, reason_code FROM all_quarantine) USING (run_id, image_id)
ORDER BY image_id, run_id
"""
"""An image keeps the rows of its last ending. Where this is a tombstone, the image keeps all of its rows: it may be
shown again without being annotated anew."""


@dataclass(frozen=True)
class Expiry:
    """The rows that the user no longer wants."""

    models: frozenset[str] = frozenset()
    """Models of which nothing is kept."""
    before: datetime | None = None
    """Images whose last ending is older than this are dropped; None: none are."""


def dropped_endings(con: duckdb.DuckDBPyConnection, model: str, expiry: Expiry) -> pa.Table:
    """Return the endings to drop, of the schema DROPPED; ``con`` has the views of one model."""
    expired = "false"
    if model in expiry.models:
        expired = "true"
    elif expiry.before is not None:
        expired = f"last.decided_at < {quote(expiry.before.isoformat())}::TIMESTAMPTZ"
    return con.sql(_DROPPED_SQL.format(expired=expired)).to_arrow_table().cast(DROPPED)
