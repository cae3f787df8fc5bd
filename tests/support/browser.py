"""A real browser for tests: headless Chromium, driven over the WebDriver protocol by chromedriver.

Both are programs, not packages; nothing is installed for it but what the standard library speaks.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
MISSING = "needs a browser: `apt-get install chromium chromium-driver`"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # by the W3C's WebDriver, section 12.1
ENTER, ESCAPE, DOWN, RIGHT, TAB = "\ue007", "\ue00c", "\ue015", "\ue014", "\ue004"
LEFT, UP, HOME = "\ue012", "\ue013", "\ue011"


class Browser:
    """One window."""

    def __init__(self, address: str, session: str) -> None:
        self._address, self._session = address, session

    def call(self, path: str, body: dict | None = None, method: str = "POST"):
        return request(f"{self._address}/session/{self._session}/{path}".rstrip("/"), body, method)

    def open(self, path: Path) -> float:
        """Open a file from disk; the seconds until it is drawn."""
        start = time.perf_counter()
        self.call("url", {"url": path.resolve().as_uri()})
        self.wait("return document.documentElement.dataset.ready !== undefined")
        return time.perf_counter() - start

    def opening(self, path: Path) -> tuple[float, float]:
        """Open a file from disk; the seconds until it is drawn, and the page's own processor time."""
        command = {"cmd": "Performance.enable", "params": {"timeDomain": "threadTicks"}}
        self.call("goog/cdp/execute", command)
        wall = self.open(path)
        command = {"cmd": "Performance.getMetrics", "params": {}}
        found = self.call("goog/cdp/execute", command)["metrics"]
        (own,) = [one["value"] for one in found if one["name"] == "ThreadTime"]
        return wall, own

    def run(self, script: str, *arguments):
        return self.call("execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments, seconds: float = 20) -> None:
        until = time.monotonic() + seconds
        while not self.run(script, *arguments):
            if time.monotonic() > until:
                raise TimeoutError(f"{script} did not become true in {seconds} s")
            time.sleep(0.02)

    def find(self, selector: str) -> dict[str, str]:
        return self.call("element", {"using": "css selector", "value": selector})

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((x) => x.textContent)"
        return self.run(script, selector)

    def hover(self, selector: str, x: float = 0.5, y: float = 0.5, *, click: bool = False) -> None:
        """Move the mouse over a place of an element, given as fractions of its size."""
        script = "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]"
        left, top, width, height = self.run(script, selector)
        place = {
            "x": int(left + x * width),
            "y": int(top + y * height),
            "type": "pointerMove",
            "duration": 0,
        }
        presses = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        mouse = {"type": "pointer", "id": "mouse", "actions": [place, *(presses if click else [])]}
        self.call("actions", {"actions": [mouse]})

    def away(self) -> None:
        """Move the mouse over nothing."""
        self.hover("h1", 0.01)

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def click(self, selector: str) -> None:
        """Click on an element as a user does, also on an option of a list."""
        (element,) = self.find(selector).values()
        self.call(f"element/{element}/click")

    def choose(self, selector: str, value: object) -> None:
        """Set a control as a user does, and wait until the page has drawn."""
        script = "const e = document.querySelector(arguments[0]); delete document.documentElement.dataset.ready; e.value = arguments[1]; for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {bubbles: true}))"
        self.run(script, selector, str(value))
        self.wait("return document.documentElement.dataset.ready !== undefined")

    def prefer(self, scheme: str) -> None:
        """What ``prefers-color-scheme`` says."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self.call("goog/cdp/execute", command)

    def resize(self, width: int, height: int) -> None:
        """Show the page in a screen of this size, as small as a phone's; 0: the window's own."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": sizes}
        self.call("goog/cdp/execute", command)

    def problems(self) -> list[str]:
        """The console's errors and warnings since the last call."""
        return [one["message"] for one in self.call("se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("screenshot", None, "GET")))


# to this machine, whatever proxy it has for others
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(url: str, body: dict | None = None, method: str = "POST"):
    data = None if method == "GET" else json.dumps(body or {}).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with DIRECTLY.open(asked, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()[:2000]) from None


@contextlib.contextmanager
def browser(profile: Path, size: tuple[int, int] = (1500, 950)) -> Iterator[Browser]:
    """A window with an empty profile, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},  # chromium wants one that it can write to
    )
    try:
        until = time.monotonic() + 30
        while True:
            try:
                request(f"{address}/status", method="GET")
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        flags = [*FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": CHROMIUM, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = request(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})
        window = Browser(address, made["sessionId"])
        try:
            yield window
        finally:
            window.call("", None, "DELETE")
    finally:
        driver.terminate()
        driver.wait(timeout=30)
