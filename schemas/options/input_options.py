"""How an input is read: what the options ``--input-kind`` and ``--*-column`` choose."""

from typing import Literal, NamedTuple

InputKind = Literal["images", "parquet", "shards", "manifest"]


class InputOptions(NamedTuple):
    """What the user says of the input; null where the input itself decides."""

    kind: InputKind | None = None
    """What a folder, a prefix or a file is read as."""
    uri_column: str | None = None
    """Column of a manifest that names the images."""
    image_column: str | None = None
    """Column of a Parquet file that holds the images' bytes."""
    id_column: str | None = None
    """Column whose text the image_id is made of, in the place of the uri."""


AS_IT_IS = InputOptions()
