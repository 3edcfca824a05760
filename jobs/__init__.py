"""Level 5: one file a command."""

import camlake  # type: ignore[import-not-found] # noqa: F401 - so that ``python -m jobs.VERB`` takes camlake's packages
