"""The private parts of fsspec, s3fs, fsspec's HTTP client and botocore that camlake uses, and why.

``tests/test_private_parts.py`` fails when one of them moves.

- ``_strip_protocol`` is the only exact way from a URL to a path: fsspec's public ways unquote, chain or expand URLs.
- ``_get_kwargs_from_urls`` gives the host and user that a URL names.
- s3fs takes ``?versionId=`` in a key for the version of an object, although a key may hold these characters.
- ``cat_file`` returns bytes without the version tag (ETag) that the store sent with them.
- botocore's ``_handle_200_error`` parses every answer once more, only to see whether it is an error after all. For a
  page of a thousand keys that takes half as long as the parsing itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

from fsspec import AbstractFileSystem
from fsspec.asyn import sync

_S3FS_TRIES = 2
"""Of s3fs, around botocore's attempts, to save a broken-off body; with its own 5 a dead store would cost minutes."""
_HTTP_CHUNK_BYTES = 2**20


class ObjectRead(NamedTuple):
    """What a store answered when it was asked for an object, or for a part of one."""

    etag: str | None
    """The store's version tag; null where it sent none."""
    size_bytes: int
    """Bytes of what was asked for; where ``data`` is null, at least so many."""
    data: bytes | None
    """Null where there are more bytes than was allowed."""


def path_on(kind: AbstractFileSystem | type[AbstractFileSystem], url: str) -> str:
    """Return the exact path of ``url`` on a filesystem or its class."""
    return cast(str, kind._strip_protocol(url))


def options_in(kind: type[AbstractFileSystem], url: str) -> dict[str, Any]:
    """Return the options of a filesystem that stand in ``url``: its host and user."""
    return cast(dict[str, Any], kind._get_kwargs_from_urls(url))


def adapt_s3(fs: AbstractFileSystem) -> None:
    """Make s3fs try less often, and take every key as it is, also one with ``?versionId=`` in it."""
    fs.retries = _S3FS_TRIES
    fs.split_path = partial(_split_path, fs)


def _split_path(fs: AbstractFileSystem, path: str) -> tuple[str, str, None]:
    """Return bucket, key and no version; slashes at the end belong to the key."""
    name = path_on(fs, path).lstrip("/")
    bucket, key = fs._find_bucket_key(name)
    return bucket, key + path[len(path.rstrip("/")) :] if key else "", None


def parse_pages(fs: AbstractFileSystem, parse: Callable[[dict[str, Any], dict[str, Any]], bool]) -> None:
    """Let ``parse`` have the answers to ``list_objects_v2`` before botocore looks at them and parses them.

    ``parse`` gets the answer and what botocore shall add to its own result, and returns whether the answer is a page;
    botocore looks for an error in what is none.
    """
    from botocore import handlers  # noqa: PLC0415 (as s3fs, in read_s3)

    look, events = getattr(handlers, "_handle_200_error", None), fs.s3.meta.events

    def read(
        operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **facts: Any
    ) -> Any:
        if operation_model.name == "ListObjectsV2" and parse(response_dict, customized_response_dict):
            return None
        return look and look(operation_model=operation_model, response_dict=response_dict, **facts)

    events.register_first(_ANSWER_EVENT, read, unique_id="camlake-pages")
    if look:
        events.unregister(_ANSWER_EVENT, look)


_ANSWER_EVENT = "before-parse.s3.*"


def read_s3(fs: AbstractFileSystem, path: str, most: int, span: tuple[int, int] | None = None) -> ObjectRead:
    """Return an object of S3, or its bytes from ``span[0]`` up to ``span[1]``, by one request of s3fs.

    An answer of more than ``most`` bytes is not read. Raises what s3fs raises.
    """
    from s3fs.core import _error_wrapper  # noqa: PLC0415 (s3fs takes half a second to import, and is here by now)

    bucket, key, _ = fs.split_path(path)
    wanted = {"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {}

    async def read() -> ObjectRead:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **wanted)
        body, size_bytes = answer["Body"], answer["ContentLength"]
        try:
            data = None if size_bytes > most else await body.read()
        finally:
            body.close()
        return ObjectRead(answer.get("ETag"), size_bytes if data is None else len(data), data)

    return cast(ObjectRead, sync(fs.loop, _error_wrapper, read, retries=fs.retries))


def read_http(fs: AbstractFileSystem, url: str, most: int, span: tuple[int, int] | None = None) -> ObjectRead:
    """Return what a web server has under ``url``, or its bytes from ``span[0]`` up to ``span[1]``, by one request.

    No more than ``most`` bytes and one chunk are read. Servers that know no ranges send everything; it is cut here.
    Raises what fsspec and aiohttp raise.
    """
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {})

    async def read() -> ObjectRead:
        session = await fs.set_session()
        options = {**fs.kwargs, "headers": {**fs.kwargs.get("headers", {}), **headers}}
        async with session.get(fs.encode_url(url), **options) as answer:
            fs._raise_not_found_for_status(answer, url)
            is_whole = span is not None and answer.status != 206
            data = await _read_beyond(answer.content.iter_chunked, span[1] if span and is_whole else most)
            etag = answer.headers.get("ETag")
        if span and is_whole:
            data = data[slice(*span)]
        return ObjectRead(etag, len(data), data if len(data) <= most else None)

    return cast(ObjectRead, sync(fs.loop, read))


async def _read_beyond(chunks: Callable[[int], Any], most: int) -> bytes:
    """Return all bytes of a body, or at least one more than ``most`` where it has so many."""
    parts, size_bytes = [], 0
    async for chunk in chunks(_HTTP_CHUNK_BYTES):
        parts.append(chunk)
        size_bytes += len(chunk)
        if size_bytes > most:
            break
    return b"".join(parts)
