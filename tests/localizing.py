"""What the tests of ``camlake localize`` share: a run beside its source, and what the new output then holds."""

from jobs.localize import localize
from jobs.terminal.console import Screen
from pipeline import camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.options.config import StorageConfig
from schemas.options.localize import LocalizeConfig

IMAGES = 12
"""Images of the source."""


def localized(source, out="new", **options):
    place = source.out.removesuffix("labels") + out
    config = {"labels": source.out, "out": place, "box_rule": "paper", "threshold": 0.5, **options}
    return localize(LocalizeConfig.resolve(config), Screen())


def lake_at(source, out="new"):
    return camlake.open(source.out.removesuffix("labels") + out)


def problems(source, out="new"):
    return verify(*connect(source.out.removesuffix("labels") + out, StorageConfig())).problems
