"""The commands of camlake, one file for each; the highest level of the program."""

import camlake  # type: ignore[import-not-found] # noqa: F401 - so that ``python -m jobs.VERB`` takes camlake's packages
