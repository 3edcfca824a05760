"""The newest state of an output, for a server that shows it while runs add to it."""

import threading

from pipeline.outputs.page.catalog import Catalog, runs_seen
from pipeline.outputs.reader import open_lake
from schemas.errors import StoreError
from schemas.options.reading import ViewConfig
from schemas.url_secrets import safe_url


class LiveCatalog:
    """Opens an output, and opens it again where it has grown."""

    def __init__(self, config: ViewConfig) -> None:
        """Open ``config.out``; raises StoreError where it has no rows, and UsageError for an unknown model."""
        self._config = config
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self.newest()

    def newest(self) -> Catalog:
        """Return the output as it is now.

        A catalog that is replaced still answers the requests that have it; nothing else holds it.
        """
        with self._lock:
            lake = open_lake(self._config.out, self._config)
            if self._catalog is None or runs_seen(lake) != self._catalog.runs:
                if not lake.models:
                    raise StoreError(f"{safe_url(self._config.out)} has no committed rows yet")
                self._catalog = Catalog(lake, self._config)
            else:
                lake.close()
            return self._catalog

    def current(self) -> Catalog:
        """Return the output as the last page saw it, so that its searches fit what it shows."""
        with self._lock:
            assert self._catalog is not None, "the first catalog is made in __init__"
            return self._catalog
