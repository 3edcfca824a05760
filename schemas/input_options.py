"""The choices of the options ``--input-kind`` and ``--*-column``: how an input is read."""

from typing import Literal, NamedTuple

InputKind = Literal["images", "parquet", "shards", "manifest"]


class InputOptions(NamedTuple):
    """The user's choices for an input; None where the input's content decides."""

    kind: InputKind | None = None
    """Kind of input as which a folder, a prefix or a file is read."""
    uri_column: str | None = None
    """Column of a manifest with the images' uris."""
    image_column: str | None = None
    """Column of a Parquet file with the images' bytes."""
    id_column: str | None = None
    """Column whose text replaces the uri in the digest that is the image_id."""


AS_IT_IS = InputOptions()
