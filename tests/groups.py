"""Which tests run in one process, one after another, where pytest-xdist shares the suite between processes.

So each server starts once: the tests on Ceph are one group, the files whose tests start a Ray or share the rendered
output are others, and any other file is a group of its own. (pytest-xdist's own groups are marks that it writes into a
private field of pytest's, which pytest 9.2 does not read.)
"""

import functools
import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
FIRST = ("ray", "ceph")
"""The largest groups begin first, because what runs beside them can then be balanced."""
_STARTS_RAY = re.compile(r'ray_session|\bCluster\(|autoscaling_cluster\(|nodes\(\)|ray\.init|ray up|soak|"ray", signal')
"""Only files whose tests start a Ray, the shared one or one of their own, hold this: two at once overload two cores.

The last part is how a test of a signal names the engine of the command that it starts.
"""


def group_of(nodeid: str) -> str:
    """Return the group of a test; ``nodeid`` is pytest's name of it."""
    file, _, name = nodeid.partition("::")
    source = _source_of(file)
    if _STARTS_RAY.search(source):
        return "ray"
    if "rendered" in source:
        return "rendered"
    function, _, parameters = name.rpartition("::")[2].partition("[")
    on_ceph = "ceph" in re.split(r"[-\]]", parameters) or re.search(rf"def {function}\([^)]*\bceph\b", source)
    return "ceph" if on_ceph else file


def order_of(nodeid: str) -> int:
    """Return where the group of a test comes in the order of all groups."""
    group = group_of(nodeid)
    return FIRST.index(group) if group in FIRST else len(FIRST)


class Groups(LoadScopeScheduling):
    """Gives each process whole groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@functools.cache
def _source_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")
