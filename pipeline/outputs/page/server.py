"""Serves ``camlake view``: one page, its searches and its pictures, for reading only.

Only who knows the URL gets an answer: it has a random token. A web site that gives its name this machine's address (DNS
rebinding) gets none either, because the header Host must name an address, this machine, or the ``--host`` of the user.
"""

import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

import duckdb

from pipeline.outputs.page.catalog import ORDERS, SIDES_PX, Query
from pipeline.outputs.page.live import LiveCatalog
from pipeline.outputs.page.report import content_policy
from schemas.errors import CamlakeError, RejectedImage, UsageError

MOST_IMAGES = 200
"""Most images of one answer."""
_FIELDS = 12
"""Most fields of a query; the page asks with seven."""
_IMAGE_ID = re.compile(r"[0-9a-f]{32}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ViewServer(ThreadingHTTPServer):
    """The server of one output."""

    daemon_threads = True

    def __init__(self, catalog: LiveCatalog, host: str, port: int) -> None:
        """Listen on ``host`` and ``port`` (0: a free one); raises UsageError where that can't be."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.catalog, self.token = catalog, secrets.token_urlsafe(24)
        self._names = {host.lower(), "localhost", socket.gethostname().lower()}
        self._host = host
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"--host {host} --port {port}: can't listen there ({error}); allowed: an address of this machine and a"
                " free port"
            ) from error

    @property
    def url(self) -> str:
        """The URL of the page, with the token."""
        everywhere = self._host in {"", "0.0.0.0", "::"}
        host = socket.gethostname() if everywhere else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/{self.token}/"

    def is_own_host(self, host: str) -> bool:
        """Return whether the header Host means this server: one of its names or an address, with its port."""
        try:
            found = urlsplit(f"//{host}")
            name, port = found.hostname or "", found.port or 80
        except ValueError:
            return False
        return port == self.server_address[1] and (name in self._names or _is_address(name))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that its reader closed."""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "camlake", ""
    timeout = 30

    def do_GET(self) -> None:
        if not self.server.is_own_host(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers only under the URL that it printed")
            return
        url = _split(self.path)
        token, _, path = url.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
            return
        try:
            self._route(path, url)
        except UsageError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except RejectedImage as error:
            self._refuse(HTTPStatus.NOT_FOUND, error.detail)
        except CamlakeError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except duckdb.Error:
            self._refuse(HTTPStatus.CONFLICT, "the output has changed since this page was loaded: load it again")

    do_HEAD = do_GET  # noqa: N815 (the base class's names)

    def _route(self, path: str, url: SplitResult) -> None:
        catalog = self.server.catalog
        if path == "":
            nonce = secrets.token_urlsafe(16)
            page = catalog.newest().page(nonce)
            policy = content_policy(nonce, live=True) + "; frame-ancestors 'none'"
            self._answer(page, "text/html; charset=utf-8", {"Content-Security-Policy": policy})
        elif path == "api/images":
            fields = _fields(url.query, {"text", "label", "least", "most", "order", "offset", "count"})
            query, offset, count = _query(fields)
            self._json(catalog.current().find(query, offset, count))
        elif path == "api/near":
            self._json(catalog.current().near(_image_id(_fields(url.query, {"id"}).get("id", ""))))
        elif path.startswith("picture/"):
            asked = _fields(url.query, {"size"}).get("size", "small")
            size = next((one for one in SIDES_PX if one == asked), None)
            if size is None:
                raise UsageError(f"size: allowed: {', '.join(SIDES_PX)}")
            data = catalog.current().picture(_image_id(path.removeprefix("picture/")), size)
            self._answer(data, "image/webp", {"Cache-Control": "private, max-age=3600"})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")

    def _json(self, value: Any) -> None:
        self._answer(json.dumps(value).encode(), "application/json", {})

    def _answer(self, body: bytes, kind: str, headers: Mapping[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        shown = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store", **_HEADERS}
        for name, value in {**shown, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, why: str, **headers: str) -> None:
        self.close_connection = True
        self._answer(
            f"{why}\n".encode(errors="replace"), "text/plain; charset=utf-8", {"Connection": "close"} | headers, status
        )

    def _read_only(self) -> None:
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "this server only shows", Allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _read_only  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Log nothing: the URLs have the token."""


def _split(target: str) -> SplitResult:
    """Return the parts of a request's target; one that is no URL has no path."""
    try:
        return urlsplit(target)
    except ValueError:
        return urlsplit("")


def _fields(query: str, known: set[str]) -> dict[str, str]:
    """Return the fields of a query; raises UsageError for an unknown, repeated or unreadable one."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS, errors="strict")
    except ValueError as error:
        raise UsageError("the query can't be read") from error
    fields = dict(pairs)
    if len(fields) < len(pairs) or not known >= fields.keys():
        raise UsageError(f"allowed, each once: {', '.join(sorted(known))}")
    return fields


def _query(fields: Mapping[str, str]) -> tuple[Query, int, int]:
    """Return what is looked for, the first image and the number of images; raises UsageError for a wrong value."""
    least, most = _number(fields, "least", 0.0, 1.0), _number(fields, "most", 1.0, 1.0)
    offset, count = _number(fields, "offset", 0.0, 1e12), _number(fields, "count", 48.0, MOST_IMAGES)
    order = fields.get("order", "sample")
    if order not in ORDERS:
        raise UsageError(f"order: allowed: {', '.join(ORDERS)}")
    return Query(fields.get("text", ""), fields.get("label", ""), least, most, order), int(offset), int(count)


def _number(fields: Mapping[str, str], name: str, default: float, most: float) -> float:
    try:
        value = float(fields.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise UsageError(f"{name}: allowed: 0 to {most:g}")
    return value


def _image_id(text: str) -> str:
    if not _IMAGE_ID.fullmatch(text):
        raise UsageError("an image_id has 32 hexadecimal digits")
    return text
