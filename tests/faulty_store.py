"""A store of the tests that fails when it is told to, and a clock that nobody has to wait for."""

import errno
from collections.abc import Callable

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage import patience
from tests.fake_lake import FakeLake


class FakeTime:
    """A clock that only sleeping moves; ``at`` holds what happens at which second."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self.at: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        for due in [one for one in self.at if one[0] <= self.now_s]:
            self.at.remove(due)
            due[1]()


def patient_in(time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> patience.Patience:
    """Give this process a patience by ``time``; its pauses are as long as they can be."""
    own = patience.Patience(time.clock, time.sleep)
    for name in dir(own):
        if not name.startswith("_"):
            monkeypatch.setattr(patience.PATIENCE, name, getattr(own, name))
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: high)
    return own


class FaultyStore(MemoryFileSystem):
    """An object store in memory: while ``down`` is true of a request, it answers like S3 that is out of order.

    With ``loses_answers`` it does what it is asked for, and only the answer is lost.
    """

    protocol = "faulty"
    cachable = False

    def __init__(
        self, down: Callable[[str, str], bool] = lambda verb, path: False, loses_answers: bool = False
    ) -> None:
        super().__init__()
        self.down, self.loses_answers = down, loses_answers
        self.requests: list[tuple[str, str]] = []

    def _do(self, verb, path, request):
        self.requests.append((verb, path))
        if not self.down(verb, path):
            return request()
        if self.loses_answers:
            request()
        raise OSError(errno.EBUSY, "Please reduce your request rate")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        return self._do("put", path, lambda: super(FaultyStore, self).pipe_file(path, value, mode=mode, **kwargs))

    def cat_file(self, path, start=None, end=None, **kwargs):
        return self._do("get", path, lambda: super(FaultyStore, self).cat_file(path, start, end, **kwargs))

    def ls(self, path, detail=True, **kwargs):
        return self._do("list", path, lambda: super(FaultyStore, self).ls(path, detail, **kwargs))

    def exists(self, path, **kwargs):
        return self._do("head", path, lambda: super(FaultyStore, self).exists(path, **kwargs))

    def rm_file(self, path):
        return self._do("delete", path, lambda: super(FaultyStore, self).rm_file(path))


class StoredLake(FakeLake):
    """An output on a store that fails when it is told to."""

    store: FaultyStore

    @property
    def fs(self):
        return self.store

    @property
    def root(self):
        return "/out"


def stored_lake(monkeypatch: pytest.MonkeyPatch) -> StoredLake:
    """Return an output on a FaultyStore, which its commits use too."""
    lake = StoredLake("faulty:///out")
    lake.store = FaultyStore()
    monkeypatch.setattr("pipeline.storage.lake.commit.connect", lambda out, storage: (lake.store, "/out"))
    return lake
