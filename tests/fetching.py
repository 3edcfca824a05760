"""Plans that the tests write by hand, and the objects that are fetched for such a plan."""

import pyarrow as pa

from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.inputs.listing import image_id, list_inputs
from pipeline.storage.inputs.object_reader import Fetched
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig
from schemas.tables import PLAN
from tests.listings import LOCAL

MAX_BYTES = 1000


def plan_of(url: str, storage: StorageConfig = LOCAL) -> pa.Table:
    return pa.Table.from_batches(list_inputs(str(url), storage).batches, schema=PLAN)


def planned(*rows: dict) -> pa.Table:
    empty = dict.fromkeys(PLAN.names)
    filled = [{**empty, "image_id": image_id(row["uri"]), "path": row["uri"], **row} for row in rows]
    return pa.Table.from_pylist(filled, schema=PLAN)


def fetch(plan: pa.Table, storage: StorageConfig = LOCAL, max_bytes: int = MAX_BYTES) -> list[Fetched]:
    return Fetcher(storage, max_bytes, threads=4).fetch(plan)


def reason(item: Fetched) -> str:
    assert isinstance(item, RejectedImage)
    return str(item.reason)
