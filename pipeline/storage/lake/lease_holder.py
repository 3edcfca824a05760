"""The document of the lease: which process of which machine holds an output, and whether it can still be alive."""

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fsspec import AbstractFileSystem
from pydantic import AwareDatetime

from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import parse_record
from pipeline.storage.lake.whole_objects import list_dir, read_whole
from schemas.runs import Record


class Holder(Record):
    """The content of a generation: who holds the lease."""

    run_id: str
    host: str
    machine: str
    pid: int
    process_started: str
    expires_at: AwareDatetime
    released: bool = False
    probe: bool = False
    nonce: str

    @property
    def is_free(self) -> bool:
        """Return whether another run may take the lease at once."""
        return self.released or self.expires_at <= datetime.now(UTC) or self.is_dead

    @property
    def is_dead(self) -> bool:
        """Return whether the holder was a process of this machine that has ended."""
        same_machine = self.machine != "" and self.machine == _machine()
        return same_machine and _process_started(self.pid) != self.process_started

    @property
    def who(self) -> str:
        """Return the holder in words."""
        return f"run {self.run_id} (process {self.pid} on {self.host})"

    @property
    def until(self) -> str:
        """Return the moment at which the lease expires unless the holder renews it."""
        return f"{self.expires_at:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def sentence(self) -> str:
        """Return in one line who holds the lease, and what is known of the holder's life."""
        if self.released:
            return f"nobody holds the output; {self.who} released it"
        if self.is_dead:
            return f"{self.who} held the output; the process has ended, and the next run takes the output over"
        if self.is_free:
            return f"{self.who} held the output; its lease expired at {self.until}"
        return f"{self.who} holds the output; unless it renews its lease, that expires at {self.until}"

    @property
    def encoded(self) -> bytes:
        """Return the document."""
        return json.dumps(self.model_dump(mode="json"), indent=1).encode()


def this_process(run_id: str, ttl_s: float) -> Holder:
    """Return this process as the holder of a lease that lasts ``ttl_s`` seconds from now."""
    return Holder(
        run_id=run_id,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()) or "",
        expires_at=after(ttl_s),
        nonce=secrets.token_hex(8),
    )


def after(seconds: float) -> datetime:
    """Return the moment in so many seconds."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


def generation_path(root: str, generation: int) -> str:
    """Return the full path of a generation's document."""
    layout = LakePaths(root)
    return layout.full(f"{layout.lease_dir}/{generation:08d}.json")


def list_generations(fs: AbstractFileSystem, root: str) -> list[int]:
    """Return the generations of an output's lease, ascending; raises StoreError where the store refuses."""
    layout = LakePaths(root)
    names = [Path(path).stem for path in list_dir(fs, layout.full(layout.lease_dir)) if path.endswith(".json")]
    return sorted(int(name) for name in names if name.isdecimal())


def read_holder(fs: AbstractFileSystem, path: str) -> Holder | None:
    """Return the holder of a generation; None where a newer generation replaced it. Waits while it is being written.

    Raises StoreError where the document can't be read.
    """
    for _ in range(20):
        data = read_whole(fs, path)
        if data is None:
            return None
        if data:
            return parse_record(Holder, data, path)
        time.sleep(0.1)
    return None


def newest_holder(fs: AbstractFileSystem, root: str) -> Holder | None:
    """Return the last holder of an output's lease; None where there was none. Raises StoreError as ``read_holder``."""
    generations = list_generations(fs, root)
    return read_holder(fs, generation_path(root, generations[-1])) if generations else None


def _machine() -> str:
    """Return the running kernel and process namespace, within which process ids are unique; empty where unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _process_started(pid: int) -> str | None:
    """Return the start of a process in ticks since boot; None where the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
