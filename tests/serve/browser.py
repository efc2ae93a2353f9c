"""A headless Chromium, driven over a pipe by its own protocol; no library, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 180.0  # seconds: a machine that does much else may be very slow, and only a wait that ends early is wrong
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions",
    "--disable-component-update", "--no-first-run", "--mute-audio", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip


def found() -> str | None:
    """Where a Chromium is, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, writing: int, reading: int) -> None:
        self._writing, self._reading, self._held, self._number = writing, reading, b"", 0
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True}, None)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **more: Any) -> Any:
        """Call a method of the protocol."""
        return self._call(method, more, self._session)

    def _call(self, method: str, more: dict[str, Any], session: str | None) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": more} | ({"sessionId": session} if session else {})
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next(PATIENCE)
            if got.get("id") == self._number:
                assert "error" not in got, got
                return got["result"]
            self.events.append(got)

    def _next(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._reading], [], [], seconds)
            assert ready, "the browser says nothing"
            piece = os.read(self._reading, 1 << 20)
            assert piece, "the browser ended"
            self._held += piece
        one, _, self._held = self._held.partition(b"\0")
        return json.loads(one)

    def run(self, script: str) -> Any:
        """Run JavaScript; return its value."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str, seconds: float = PATIENCE) -> Any:
        """Wait for a true value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}"
            time.sleep(0.05)
        return value

    def go(self, url: str) -> None:
        """Open an address, and wait for the page's script."""
        self.call("Page.navigate", url=url)
        self.until("document.querySelector('#model')?.options.length > 0")

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """Be a window of this size."""
        mobile = width < 600
        shape = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **shape)

    def dark(self, dark: bool) -> None:
        """Prefer dark or light."""
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def type(self, text: str) -> None:
        """Put text where the cursor is."""
        self.call("Input.insertText", text=text)

    def key(self, key: str, code: int = 0, **more: Any) -> None:
        """Press a key and let it go."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **(text | more))

    def click(self, selector: str) -> None:
        """Click an element."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def picture(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def complaints(self) -> list[str]:
        """What the browser had to say: errors of scripts, refused by the content policy, failed loads."""
        self.run("1")
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"])[:400] for e in self.events if e["method"] in kinds and _loud(e)]

    def asked(self) -> list[str]:
        """Every address that was loaded."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]


def _loud(event: dict[str, Any]) -> bool:
    return event["params"].get("entry", {}).get("level") != "verbose"


@contextmanager
def browser(language: str = "en") -> Iterator[Page]:
    """Start a Chromium with a profile of its own; it ends with the block."""
    path = found()
    assert path is not None
    down_read, down_write = os.pipe()
    up_read, up_write = os.pipe()

    def place() -> None:  # it reads commands from 3 and writes to 4
        high = os.dup(up_write), os.dup(down_read)
        os.dup2(high[1], 3)
        os.dup2(high[0], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [path, *FLAGS, f"--user-data-dir={profile}", f"--lang={language}", f"--accept-lang={language}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, preexec_fn=place, pass_fds=(3, 4), **quiet)
        os.close(down_read)
        os.close(up_write)
        try:
            yield Page(down_write, up_read)
        finally:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(5)
            child.kill()
            child.wait()
            os.close(down_write)
            os.close(up_read)
