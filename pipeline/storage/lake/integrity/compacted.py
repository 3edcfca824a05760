"""What ``repair`` does with compactions: a damaged one is undone while the files that it replaced are still there."""

from collections.abc import Sequence

from fsspec import AbstractFileSystem

from pipeline.storage.lake.integrity.documents import read_compactions
from pipeline.storage.lake.integrity.file_checks import damaged_dropped, damaged_files
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import compaction_path
from pipeline.storage.lake.whole_objects import list_data_files, remove_many
from schemas.errors import StoreError
from schemas.runs import Compaction


def replaced_files(compactions: Sequence[Compaction]) -> set[str]:
    """Return the files that no longer count after the compactions."""
    return {path for one in compactions for path in one.replaced_files}


def sound_compactions(fs: AbstractFileSystem, root: str) -> tuple[list[Compaction], list[str]]:
    """Return the compactions whose files are whole, and a line for each that was undone.

    Only the newest compaction of a model can have replaced files that are still there. Raises StoreError where a
    damaged one can't be undone, and for an unreadable record: nothing is changed then.
    """
    compactions, problems = read_compactions(fs, root)
    if problems:
        raise StoreError(f"{problems[0]}; put it back from a copy of the output: without it rows would be lost")
    paths, listed, said = LakePaths(root), list_data_files(fs, root), []
    later: set[str] = set()
    kept: list[Compaction] = []
    for one in reversed(compactions):
        damage = damaged_files(fs, paths, [file for file in one.files if file.path not in later], listed)
        damage |= damaged_dropped(fs, root, [one])
        if not damage:
            kept.insert(0, one)
            later |= set(one.replaced_files)
            continue
        first = next(iter(damage.values()))
        gone = sorted(path for path in one.replaced_files if path not in listed)
        if one.shown or gone:
            raise StoreError(f"{first}; the files that it was made from are gone: put it back from a copy")
        remove_many(fs, [compaction_path(root, one)])
        said.append(f"{paths.relative(compaction_path(root, one))}: undone with its merged files, because of {first}")
    return kept, said
