"""Level 5: the commands of camlake, a file or a folder for each."""

import camlake  # type: ignore[import-not-found] # noqa: F401 - so that ``python -m jobs.VERB`` takes camlake's packages
