"""The configuration of ``camlake publish``."""

from typing import Self

from pydantic import model_validator

from schemas.options.config import StorageConfig, option, required
from schemas.tables import TABLES, Table


class PublishConfig(StorageConfig):
    """The options of ``camlake publish``."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    catalog: str = required(
        "the Iceberg catalog: a name in .pyiceberg.yaml, or a URI such as sqlite:////data/catalog.db, of which it takes"
        " the catalog named camlake",
        flag=True,
    )
    table: str = required("name of the Iceberg table: NAMESPACE.NAME; it is made where it is missing", flag=True)
    of: Table = option("boxes", f"table of OUT whose rows are published: {', '.join(TABLES)}", "Options")
    model: str | None = option(
        None, "which model's rows; needed where OUT has several; '*' for the rows of all", "Options"
    )
    warehouse: str | None = option(
        None, "URL where a catalog given by URI keeps the tables' metadata and rewritten files", "Options"
    )

    @property
    def is_uri(self) -> bool:
        """Return whether ``catalog`` is a URI rather than a name."""
        return "://" in self.catalog

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        parts = self.table.split(".")
        if len(parts) < 2 or not all(parts):
            raise ValueError(f"--table {self.table!r}: allowed: NAMESPACE.NAME")
        if self.is_uri and not self.warehouse:
            raise ValueError("--warehouse is missing: allowed: a URL; a catalog given by its URI needs one")
        if self.warehouse and not self.is_uri:
            raise ValueError("--warehouse: allowed with a --catalog given by its URI")
        return self
