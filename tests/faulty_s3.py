"""A proxy in front of an S3 server that fails where it is told to, or at random moments of a seed."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Literal, NamedTuple, get_args
from urllib.parse import urlsplit

from tests.serving import QuietHandler, serving

Odd = Literal["lost", "reset", "late", "short", "page", "other"]
"""What an answer can be besides a status that the proxy gives itself.

``lost``: the server does what it is asked for, and the proxy answers 500. ``reset``: the connection ends without an
answer. ``late``: the answer comes after LATE_S. Of an object or a list that is read: ``short``: the connection ends in
the middle of the body. Of an object: ``page``: a web page with the status 200, as a gateway's. Of an image: ``other``:
other bytes with another version tag.
"""
Fault = int | Odd | None
_OF_BODIES = ("short", "page", "other")
LATE_S = 0.5
_PAGE = b"<html><body>Please wait</body></html>"


class Request(NamedTuple):
    """A request as it came to the proxy."""

    verb: str
    path: str
    """Bucket, key and query."""


class FaultyS3:
    """The faults of a proxy, and the requests that it saw."""

    def __init__(self, endpoint_url: str) -> None:
        self.server = urlsplit(endpoint_url).netloc
        self.fault: Callable[[Request], Fault] = lambda request: None
        self.failed: list[Request] = []
        self.faults: Counter[str] = Counter()
        """How often each fault came, and how many requests passed unharmed ("none")."""
        self.url = ""


class MixedFaults:
    """Gives ``share`` of all requests one of the faults, each equally often; threads may call it."""

    KINDS: tuple[Fault, ...] = (500, 503, *get_args(Odd))

    def __init__(self, share: float, seed: int) -> None:
        self._share, self._random, self._lock = share, random.Random(seed), threading.Lock()

    def __call__(self, request: Request) -> Fault:
        with self._lock:
            if self._random.random() >= self._share:
                return None
            fault = self._random.choice(self.KINDS)
            # A write has no body that could be short: it gets one of the others.
            return self._random.choice((500, 503, "lost", "reset")) if _spared(fault, request) else fault


def _spared(fault: Fault, request: Request) -> bool:
    if fault == "other":  # Only of an image the version is known before.
        return request.verb != "GET" or not request.path.endswith((".jpg", ".png"))
    return fault in _OF_BODIES and (request.verb != "GET" or (fault == "page" and "?" in request.path))


class _Proxy(QuietHandler):
    faults: FaultyS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its head

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path)
        fault = self.faults.fault(request)
        self.faults.faults[str(fault).lower()] += 1
        if fault is not None:
            self.faults.failed.append(request)
        if fault == "reset":
            self._reset()
            return
        if isinstance(fault, int):
            self._refuse(fault)
            return
        if fault == "late":
            time.sleep(LATE_S)
        answer, content = self._ask(body)
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in {"transfer-encoding", "connection", "content-length"}
        }
        length = (answer.getheader("Content-Length") or "0") if self.command == "HEAD" else str(len(content))
        if fault == "lost":
            self._refuse(500)
        elif fault == "page" and answer.status < 300:
            self._send(200, {"Content-Type": "text/html"}, _PAGE, str(len(_PAGE)))
        elif fault == "other" and answer.status < 300:
            self._send(answer.status, headers | {"ETag": '"another"'}, content[::-1], length)
        elif fault == "short" and len(content) > 1:
            self._send(answer.status, headers, content[: len(content) // 2], length)
            self.wfile.flush()
            self._reset()
        else:
            self._send(answer.status, headers, content, length)

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.faults.server, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def _send(self, status: int, headers: dict[str, str], content: bytes, length: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int) -> None:
        code = "SlowDown" if status == 503 else "InternalError"
        text = f"<Error><Code>{code}</Code><Message>a fault</Message></Error>"
        content = b"" if self.command == "HEAD" else text.encode()
        self._send(status, {}, content, str(len(content)))

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()  # With this option it sends a reset.

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - names of the standard library


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing where a client has gone, as a killed one does."""


@contextmanager
def faulty(endpoint_url: str) -> Iterator[FaultyS3]:
    """Run the proxy in front of the server at ``endpoint_url`` during the block."""
    faults = FaultyS3(endpoint_url)
    server = _Server(("127.0.0.1", 0), type("Own", (_Proxy,), {"faults": faults}))
    with serving(server) as url:
        faults.url = url
        yield faults
