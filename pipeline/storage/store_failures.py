"""The failures of stores and files that can be recognised by nothing better than a type's name, a package or a text.

Each store's library raises exceptions of its own, and most of these libraries are not installed everywhere, so that no
``except`` can name their types. ``tests/test_private_parts.py`` fails when one of the names moves.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from schemas.errors import CamlakeError, StoreError
from schemas.url_secrets import without_secrets

_VENDORS = frozenset(
    {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs", "paramiko", "requests", "urllib3"}
)
"""Packages whose exceptions are failures of a store."""
_NO_CREDENTIALS = "NoCredentialsError"
"""Type of botocore's exception where it finds no key; botocore is imported only where S3 is used."""
_GONE_STATUS, _DENIED_STATUS = (404, 410), (401, 403)
_PASSING_STATUS = (408, 409, 425, 429, 500, 502, 503, 504, 507, 509)
"""HTTP statuses after which the same request may succeed; S3 answers 409 to writes of one name at the same time."""
_PASSING_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE"),
        *("EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "ENETRESET"),
    )
    if hasattr(errno, name)
)
"""Numbers of OSErrors that pass; s3fs gives EREMOTEIO and EBUSY to the answers InternalError and SlowDown."""
_UNREACHABLE = frozenset(
    {
        *("HTTPClientError", "ConnectionError", "ResponseParserError"),  # botocore
        *("ClientConnectionError", "ClientPayloadError", "ServerTimeoutError"),  # aiohttp
        *("Timeout", "ChunkedEncodingError", "IncompleteRead", "TransportError", "ServiceRequestError"),
    }
)
"""Types of the stores' libraries, or bases of these, for a store that can't be reached or breaks off."""
_MOST_CHARACTERS = 300
"""Of one line of an error; some libraries put whole HTML pages into theirs."""


def is_store_failure(error: BaseException) -> bool:
    """Tell whether ``error`` came from a store (or the way to it) rather than from a mistake in this program."""
    return isinstance(error, OSError | EOFError) or _is_of_vendor(error)


def is_not_found(error: BaseException) -> bool:
    """Tell whether ``error`` says that no object is there: nothing of this name, no file, or a link that loops."""
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    loops = isinstance(error, OSError) and error.errno == errno.ELOOP
    return missing or loops or getattr(error, "status", None) in _GONE_STATUS


def is_denied(error: BaseException) -> bool:
    """Tell whether ``error`` says that the object must not be read, or that there are no credentials."""
    denied = isinstance(error, PermissionError) or getattr(error, "status", None) in _DENIED_STATUS
    return denied or type(error).__name__ == _NO_CREDENTIALS


def is_outage(error: BaseException) -> bool:
    """Tell whether the same request may succeed later: the store is overloaded, out of order or out of reach."""
    if is_not_found(error) or is_denied(error):
        return False
    # First, because aiohttp gives the status 400 to the cause of an answer that breaks off.
    if _is_of_vendor(error) and any(kind.__name__ in _UNREACHABLE for kind in type(error).__mro__):
        return True
    status = _http_status(error) or _http_status(error.__cause__)
    if status is not None:
        return status in _PASSING_STATUS
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_NUMBERS


def _http_status(error: BaseException | None) -> int | None:
    """Return the status of the store's answer, where a store's library gives it; None where there was no answer."""
    if not _is_of_vendor(error):
        return None
    answer = getattr(error, "response", None)
    found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    for name in ("status", "status_code", "code"):
        found = found or getattr(error, name, None)
    return found if isinstance(found, int) else None


def is_damage(error: BaseException) -> bool:
    """Tell whether pyarrow failed because of a file's content.

    pyarrow raises ArrowInvalid for most damage, and for some of it a plain OSError without a number; an OSError of the
    operating system has one.
    """
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def describe_failure(error: BaseException) -> str:
    """Return what went wrong in one short line without secrets."""
    if type(error).__name__ == _NO_CREDENTIALS:
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, --profile, or --anonymous"
    if isinstance(error, FileNotFoundError) and not _is_of_vendor(error.__cause__):
        return "not found"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip()
    if text in {"", "None"}:  # A store that answers 403 without a message, as Ceph does.
        text = "access denied" if isinstance(error, PermissionError) else type(error).__name__
    lines = str(text).strip().splitlines()
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # botocore: "Parameter validation failed:"
    return without_secrets(line)[:_MOST_CHARACTERS]


def _is_of_vendor(error: BaseException | None) -> bool:
    return type(error).__module__.split(".")[0] in _VENDORS


@contextmanager
def store_errors(doing: str, kind: type[CamlakeError] = StoreError) -> Iterator[None]:
    """Turn every failure of a store inside the block into ``kind`` with the line "<doing>: <what went wrong>".

    ``doing`` must name a URL only through ``safe_url``. Errors of camlake and mistakes in the program pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if not is_store_failure(error):
            raise
        raise kind(f"{doing}: {describe_failure(error)}") from error
