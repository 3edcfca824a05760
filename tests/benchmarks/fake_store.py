"""A read-only S3 server on this machine with any number of objects: it computes the keys, and all bodies are equal.

The server stores nothing for an object, so millions of keys take no memory. It answers the requests that camlake sends
when it reads: ListObjectsV2, HEAD and GET, whole or by range. Only this machine can reach the server.
"""

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.utils import formatdate
from typing import overload

from aiohttp import web

BUCKET = "simulated"
FOLDER_OBJECTS = 1_000
"""Number of objects in one folder."""
PAGE_KEYS = 1_000
"""The most keys on one page; S3 never lists more."""
_AFTER = "\U0010ffff"
"""A character that sorts after every character of a key."""
_MODIFIED_S = 1_700_000_000


@dataclass(frozen=True)
class StoreSpec:
    """The contents of the store and the speed of its answers."""

    objects: int
    latency_s: float = 0.0
    """Seconds that the server waits before each answer, as a distant store would."""
    processes: int = 1
    """Number of server processes. One process answers faster than one s3fs client asks."""


class Keys(Sequence[str]):
    """The keys photos/<folder>/<number>.jpg in the order in which S3 lists them. Each key is computed on access."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one key, or the keys of a slice."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return f"photos/{index // FOLDER_OBJECTS:06d}/{index:010d}.jpg"

    def __contains__(self, key: object) -> bool:
        place = bisect_left(self, str(key))
        return place < self._count and self[place] == key


@dataclass(frozen=True)
class ListPage:
    """The contents of an answer to ListObjectsV2."""

    keys: list[str]
    prefixes: list[str]
    next_index: int | None
    """Index at which the next page begins; None on the last page."""


def list_page(keys: Sequence[str], start: int, prefix: str, delimiter: str, most: int) -> ListPage:
    """Return a page of at most ``most`` names with ``prefix``; it begins at index ``start`` or at the first such key.

    With a ``delimiter``, all keys with the same text between ``prefix`` and the delimiter become one common prefix.
    """
    at, end = max(start, bisect_left(keys, prefix)), bisect_left(keys, prefix + _AFTER)
    page = ListPage([], [], None)
    if not delimiter:
        stop = min(at + most, end)
        return ListPage(list(keys[at:stop]), [], stop if stop < end else None)
    while at < end and len(page.keys) + len(page.prefixes) < most:
        name, found, _ = keys[at][len(prefix) :].partition(delimiter)
        if found:
            page.prefixes.append(prefix + name + delimiter)
            at = bisect_left(keys, page.prefixes[-1] + _AFTER, lo=at)
        else:
            page.keys.append(keys[at])
            at += 1
    return ListPage(page.keys, page.prefixes, at if at < end else None)


class _Server:
    """The request handlers of one server process."""

    def __init__(self, spec: StoreSpec, body: bytes) -> None:
        self._keys, self._latency_s, self._body = Keys(spec.objects), spec.latency_s, body
        self._headers = {
            "ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"',
            "Last-Modified": formatdate(_MODIFIED_S, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        self._entry = (
            f"</Key><LastModified>2023-11-14T22:13:20.000Z</LastModified><ETag>{self._headers['ETag']}</ETag>"
            f"<Size>{len(body)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get(f"/{BUCKET}", self.list_objects)
        application.router.add_get(f"/{BUCKET}/", self.list_objects)
        application.router.add_get(f"/{BUCKET}/{{key:.+}}", self.get_object)
        return application

    async def list_objects(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self._latency_s)
        query = request.query
        start = int(query["continuation-token"]) if "continuation-token" in query else 0
        start = max(start, bisect_right(self._keys, query.get("start-after", "")))
        most = min(int(query.get("max-keys", PAGE_KEYS)), PAGE_KEYS)
        page = list_page(self._keys, start, query.get("prefix", ""), query.get("delimiter", ""), most)
        more = page.next_index is not None
        parts = [
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">',
            f"<Name>{BUCKET}</Name><KeyCount>{len(page.keys) + len(page.prefixes)}</KeyCount><MaxKeys>{most}</MaxKeys>",
            f"<IsTruncated>{str(more).lower()}</IsTruncated>",
            f"<NextContinuationToken>{page.next_index}</NextContinuationToken>" if more else "",
            *(f"<Contents><Key>{key}{self._entry}" for key in page.keys),
            *(f"<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>" for prefix in page.prefixes),
            "</ListBucketResult>",
        ]
        return web.Response(text="".join(parts), content_type="application/xml")

    async def get_object(self, request: web.Request) -> web.Response:
        """Answer GET and HEAD with the body or the requested range."""
        await asyncio.sleep(self._latency_s)
        if request.match_info["key"] not in self._keys:
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        headers = self._headers | {"Content-Type": "image/jpeg"}
        if "Range" not in request.headers:
            return web.Response(body=self._body, headers=headers)
        start, stop, _ = request.http_range.indices(len(self._body))
        if start >= stop:
            return web.Response(
                status=416, text="<Error><Code>InvalidRange</Code></Error>", content_type="application/xml"
            )
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(self._body)}"
        return web.Response(status=206, body=self._body[start:stop], headers=headers)


@contextmanager
def fake_store(spec: StoreSpec, body: bytes) -> Iterator[str]:
    """Run the store in new processes and yield its endpoint URL; the bucket's name is BUCKET."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        handle = listener.fileno()
        command = [sys.executable, "-m", "tests.benchmarks.fake_store", str(handle), json.dumps(asdict(spec))]
        servers = [subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[handle]) for _ in range(spec.processes)]
        try:
            for server in servers:
                assert server.stdin is not None
                server.stdin.write(body)
                server.stdin.close()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for server in servers:
                server.terminate()
                server.wait()


def main() -> None:
    """Serve on the inherited listening socket until terminated; standard input gives the body of all objects."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    server = _Server(StoreSpec(**json.loads(sys.argv[2])), sys.stdin.buffer.read())
    web.run_app(server.application(), sock=listener, print=None, access_log=None)


if __name__ == "__main__":
    main()
