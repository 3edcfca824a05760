"""The version of a listed object, as its store describes it, and the errors where another version arrives."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MODIFIED_KEYS = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
"""Names of the time of an object's last change in fsspec's filesystems."""


_BY_SIZE = "size_bytes="
"""Beginning of a tag made from size and time, where the store gives none; it is compared only with such tags."""


class Version(NamedTuple):
    """A store's description of an object: tag, size in bytes, last change in microseconds since 1970, UTC."""

    etag: str | None = None
    size_bytes: int | None = None
    modified_us: int | None = None

    @property
    def tag(self) -> str | None:
        """Return the store's tag, or else size and time as one text; None where neither is known.

        Images inside the object, such as members of a tar shard, have this version. A shard that was written again
        within the same second, or with its old time, has another tag if its size differs.
        """
        if self.etag or self.size_bytes is None or self.modified_us is None:
            return self.etag
        return f"{_BY_SIZE}{self.size_bytes},modified_us={self.modified_us}"


UNKNOWN = Version()


class OtherLengthError(Exception):
    """More or fewer bytes arrived than were listed; another try may bring all of them."""


class OtherVersionError(Exception):
    """The store sent an object with another version tag than was listed."""


def microseconds(value: Any) -> int | None:
    """Return a time as microseconds since 1970 UTC: a datetime (naive means UTC), ISO text, or seconds as a number.

    Raises ValueError for any other text.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int | float):
        return round(value * 1_000_000)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return int((aware - _EPOCH) // _MICROSECOND)


def version_of(info: dict[str, Any]) -> Version:
    """Return the version in a result of ``fs.info`` or ``fs.ls`` for an object."""
    etag = info.get("ETag") or info.get("etag")
    modified = next((info[key] for key in _MODIFIED_KEYS if info.get(key) is not None), None)
    return Version(str(etag).strip('"') if etag else None, info.get("size"), microseconds(modified))


def local_version(status: os.stat_result) -> Version:
    """Return the version of a local file: size and time of the last change, no tag."""
    return Version(None, status.st_size, status.st_mtime_ns // 1000)


def check_version(etag: str | None, listed: str | None) -> None:
    """Raise OtherVersionError where a store's tag and the listed one are both known and differ."""
    if etag and listed and not listed.startswith(_BY_SIZE) and _bare(etag) != _bare(listed):
        raise OtherVersionError(f"the store has the version {_bare(etag)!r}, {_bare(listed)!r} was listed")


def _bare(etag: str) -> str:
    """Return a tag without quotes, and without the mark of a weak one, which HEAD and GET may set differently."""
    return etag.removeprefix("W/").strip('"')
