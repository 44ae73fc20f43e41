"""Chromium without a window, spoken to over its debugging pipe (the DevTools protocol): open a page, click, take a picture.

Chromium is looked for as chromium, chromium-browser and google-chrome (Debian: apt-get install chromium).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SETTINGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"),
)


def found_browser() -> str | None:
    """The path of a browser, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class BrowserError(Exception):
    """The browser refused something, or what was waited for did not come."""


class Browser:
    """One browser with one page and a profile of its own; ends with its `with` block.

    Raises:
        BrowserError: if there is no browser.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        """How long anything may take."""
        self._last = 0
        self._unread = b""
        self._held = ExitStack()
        self._session: str | None = None

    def __enter__(self) -> Self:
        program = found_browser()
        if program is None:
            raise BrowserError("found no chromium, chromium-browser or google-chrome; Debian: apt-get install chromium")
        profile = self._held.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        (theirs_in, self._in), (self._out, theirs_out) = os.pipe(), os.pipe()
        # The browser reads from descriptor 3 and writes to 4.
        shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", shell, program, *SETTINGS, f"--user-data-dir={profile}", "about:blank"]
        log = self._held.enter_context(tempfile.TemporaryFile())
        self._process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdout=log, stderr=log)
        self._held.callback(self._end)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            (page,) = [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
            self._session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._in)
        os.close(self._out)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol and returns its result.

        Raises:
            BrowserError: if it is refused or not answered in time.
        """
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while (answer := self._read(method)).get("id") != self._last:
            pass
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def _read(self, method: str) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._out], [], [], self.seconds)
            if not ready or not (part := os.read(self._out, 1 << 20)):
                raise BrowserError(f"{method}: {'no answer' if not ready else 'the browser has ended'}")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window in pixels, and which colours the reader prefers."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        preferred = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[preferred])

    def open(self, address: str, ready: str = "document.readyState == 'complete'") -> None:
        """Goes to a page and waits until the JavaScript expression `ready` holds there."""
        self.ask("Page.navigate", url=address)
        self.wait(ready)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to on the page.

        Raises:
            BrowserError: if it throws.
        """
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Waits until a JavaScript expression holds, and then until nothing on the page has changed for a second.

        Raises:
            BrowserError: if it does not in time.
        """
        deadline, before = time.monotonic() + self.seconds, None
        while time.monotonic() < deadline:
            now = self.value(f"({expression}) ? document.documentElement.outerHTML.length : null")
            if now is not None and now == before:
                return
            before = now
            time.sleep(1.0)
        raise BrowserError(f"waited for {expression} in vain, at {self.value('location.href')}")

    def click(self, element: str) -> None:
        """Clicks the middle of an element, which is waited for: a JavaScript expression, such as `document.querySelector('a')`."""
        self.wait(f"{element} != null")
        self.value(f"{element}.scrollIntoView({{block: 'nearest'}})")
        x, y = self.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            held: dict[str, Any] = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def shoot(self, file: Path, height: int | None = None) -> None:
        """A picture of the window as WebP, or of the page from its top to a height at most."""
        asked: dict[str, Any] = {"format": "webp", "quality": 80}
        if height is not None:
            width, whole = self.value("[innerWidth, document.documentElement.scrollHeight]")
            clip = {"x": 0, "y": 0, "width": width, "height": min(height, whole), "scale": 1}
            asked |= {"captureBeyondViewport": True, "clip": clip}
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", **asked)["data"]))
