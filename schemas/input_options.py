"""The choices of the options ``--input-kind`` and ``--*-column``: how an input is read."""

from typing import Literal, NamedTuple

from schemas.errors import UsageError

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

    def refuse_unfit(self, kind: str, shown: str) -> None:
        """Raise UsageError for a column that an input of this kind, which is called ``shown``, does not have."""
        for name, kinds in _KINDS.items():
            chosen = getattr(self, name)
            if chosen is not None and kind not in kinds:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} {chosen!r}: allowed with a {' or '.join(kinds)}; {shown} is read as {kind}")


_KINDS = {
    "uri_column": ("manifest",),
    "image_column": ("parquet images",),
    "id_column": ("manifest", "parquet images"),
}
"""The kinds of input that have the column which an option names."""
AS_IT_IS = InputOptions()
