"""A headless Chromium that the tests drive through its debugging pipe, without a library and without a port."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 60.0
"""Most seconds for an answer or for a condition on a page; a loaded machine needs many."""
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
    "--disable-features=NetworkTimeServiceQuerying --remote-debugging-pipe"
)


class Tab:
    """One page in the browser.

    ``errors`` has the script errors, the policy's violations and the failed requests, ``requests`` every URL asked for.
    """

    def __init__(self, browser: "Chromium", session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Return the browser's answer to a command of its protocol."""
        return self._browser.call(method, values, self._session)

    def size(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Set the size of the viewport in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str, ready: str = "document.readyState === 'complete'") -> None:
        """Go to ``url`` and wait for the expression ``ready``."""
        self.call("Page.navigate", url=url)
        self.until(f"location.href !== 'about:blank' && ({ready})")

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited. Raises AssertionError where it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true; raises TimeoutError after WAIT_S seconds."""
        end_s = time.monotonic() + WAIT_S
        while not self.value(expression):
            if time.monotonic() > end_s:
                raise TimeoutError(f"{expression}; errors: {self.errors}")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release one key, such as ArrowRight or m."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Escape": 27}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Write a PNG of the viewport, or of the ``whole`` page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))


class Chromium:
    """The running browser: it answers commands and reports events, each one a JSON document in a pipe."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._number = 0
        self._tabs: dict[str, Tab] = {}

    def tab(self) -> Tab:
        """Return a new page in a profile of its own."""
        context = self.call("Target.createBrowserContext", {})["browserContextId"]
        target = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self._tabs[session] = tab = Tab(self, session)
        return tab

    def call(self, method: str, values: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Return the answer to a command; raises AssertionError where the browser refuses it."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": values} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._event(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            came = os.read(self._read, 2**20)
            if not came:
                raise RuntimeError("Chromium has ended")
            self._buffer += came
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _event(self, event: dict[str, Any]) -> None:
        tab, values = self._tabs.get(event.get("sessionId", "")), event.get("params", {})
        if tab is None:
            return
        if event["method"] == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            tab.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event["method"] == "Log.entryAdded" and values["entry"]["level"] in {"error", "warning"}:
            tab.errors.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
        elif event["method"] == "Runtime.consoleAPICalled" and values["type"] in {"error", "warning"}:
            tab.errors.append(str(values["args"]))
        elif event["method"] == "Network.requestWillBeSent":
            tab.requests.append(values["request"]["url"])
        elif event["method"] == "Page.javascriptDialogOpening":
            tab.errors.append(f"dialog: {values['message']}")


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Chromium]:
    """Start the browser and end it after the block; the test skips where none is installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("Chromium is not installed: the page is not opened in a real browser")
    (their_read, my_write), (my_read, their_write) = os.pipe(), os.pipe()
    # The browser reads commands from descriptor 3 and writes to descriptor 4. A shell sets them up; dash can't name
    # descriptors of two digits.
    command = ["bash", "-c", f'exec "$@" 3<&{their_read} 4>&{their_write}', "bash", program, *_FLAGS.split()]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}", *flags, "about:blank"],
        pass_fds=(their_read, their_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_read)
    os.close(their_write)
    browser = Chromium(my_read, my_write)
    try:
        yield browser
        browser.call("Browser.close", {})
    finally:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(my_read)
        os.close(my_write)
