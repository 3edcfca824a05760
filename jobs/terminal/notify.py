"""Posts how a run ended to a webhook. A webhook that does not answer is a warning, never a failure."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import SecretStr

from jobs.terminal.screen import Screen, public
from schemas.errors import CamlakeError, HeldError, RejectedShareError, Stopped
from schemas.runs import RunManifest
from schemas.url_secrets import origin_of

TIMEOUT_S = 10.0
"""How long the webhook may take; a run that is over waits for nothing longer."""


class Notice:
    """What is told of a run: it grows while the run goes on."""

    def __init__(self, out: str) -> None:
        self.facts: dict[str, Any] = {"out": out}

    def finished(self, manifest: RunManifest, text: str) -> None:
        """Add the counts and the summary of a run that is complete; ``text`` is its result in one line."""
        self.facts |= {
            "run_id": manifest.run_id,
            "text": text,
            "counts": manifest.counts.model_dump(),
            "summary": manifest.summary.model_dump() if manifest.summary else None,
        }


@contextmanager
def notifying(url: SecretStr | None, out: str, screen: Screen) -> Iterator[Notice]:
    """Post a JSON document to ``url`` when the block ends, also by an error, which passes on; None posts nothing.

    The document has ``event`` (finished, rejected, stopped or failed), ``out``, ``run_id`` where it is known,
    ``exit_status``, ``text``, which chat programs show, and for a complete run ``counts`` and ``summary``. A run that
    another one keeps from working posts nothing: the other one will.
    """
    notice = Notice(out)
    try:
        yield notice
    except HeldError:
        raise
    except BaseException as error:
        if url is not None:
            _post(url, _of_error(error, notice, screen), screen)
        raise
    if url is not None:
        _post(url, {"event": "finished", "exit_status": 0, **notice.facts}, screen)


def _of_error(error: BaseException, notice: Notice, screen: Screen) -> dict[str, Any]:
    kind = type(error).__name__
    line = " ".join(str(error).split())
    facts = {"run_id": screen.run_id, **notice.facts}
    if isinstance(error, KeyboardInterrupt):
        facts |= {"event": "stopped", "exit_status": Stopped.exit_status, "error": "stopped"}
    elif isinstance(error, CamlakeError):
        event = "rejected" if isinstance(error, RejectedShareError) else "failed"
        facts |= {"event": event, "exit_status": error.exit_status, "error": line}
    else:
        facts |= {"event": "failed", "exit_status": CamlakeError.exit_status, "error": f"{kind}: {line}"}
    return facts | {"text": f"camlake annotate into {notice.facts['out']}: {facts['error']}"}


def _post(url: SecretStr, document: dict[str, Any], screen: Screen) -> None:
    where = f"--notify {origin_of(url.get_secret_value())}/…"
    try:
        address, headers = _without_user(url.get_secret_value())
        body = json.dumps(public(document), default=str).encode()
        headers["Content-Type"] = "application/json"
        request = urllib.request.Request(address, data=body, method="POST", headers=headers)
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        error.close()
        screen.say(f"warning: {where}: the webhook answered {error.code}; the run is not affected")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        screen.say(f"warning: {where}: the webhook does not answer ({type(reason).__name__}); the run is not affected")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would send the password to another host, and a GET without the document."""

    def redirect_request(self, *_: Any) -> None:
        """Return nothing, so that the answer becomes an HTTPError."""


def _without_user(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without user and password, and these two as a header: urllib takes none in a URL."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return plain, {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
