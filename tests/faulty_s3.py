"""A proxy in front of an S3 server that fails where it is told to: with a status, or by losing the answer."""

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from tests.serving import QuietHandler, serving

Fault = int | Literal["lost"] | None
"""A status that the proxy answers itself; ``lost``: the server does what it is asked for, and the proxy answers 500."""


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
        self.url = ""


class _Proxy(QuietHandler):
    faults: FaultyS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its head

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path)
        fault = self.faults.fault(request)
        if fault is not None:
            self.faults.failed.append(request)
        if fault in (None, "lost"):
            connection = http.client.HTTPConnection(self.faults.server, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
        if fault is None:
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)
            return
        status = 500 if fault == "lost" else fault
        text = (
            f"<Error><Code>{'SlowDown' if status == 503 else 'InternalError'}</Code><Message>a fault</Message></Error>"
        )
        self.send_response(status)
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - names of the standard library


@contextmanager
def faulty(endpoint_url: str) -> Iterator[FaultyS3]:
    """Run the proxy in front of the server at ``endpoint_url`` during the block."""
    faults = FaultyS3(endpoint_url)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (_Proxy,), {"faults": faults}))
    server.daemon_threads = True
    with serving(server) as url:
        faults.url = url
        yield faults
