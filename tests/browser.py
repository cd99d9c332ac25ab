"""A headless Chromium, driven through its debugging pipe, for the tests of pages."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 120.0  # seconds for any answer; machines of a CI can be busy
TWO_FRAMES = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"


def find_browser() -> str | None:
    """Return the path of a Chromium, None when there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Tab:
    """One page; ``problems`` are errors on its console, ``requests`` the URLs it loaded."""

    process: subprocess.Popen[bytes]
    write: int
    read: int
    session: str = ""
    last: int = 0
    buffer: bytes = b""
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loaded: bool = False

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and return its result."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def open(self, path: Path) -> None:
        """Load a file and wait until it is complete."""
        self.loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._next()

    def run(self, script: str) -> Any:
        """Return the value of an expression, awaited when it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.run(TWO_FRAMES)

    def key(self, name: str) -> None:
        """Press a key, named as in KeyboardEvent.key."""
        text = {"text": name} if len(name) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)
        self.settle()

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send ``mousePressed``, ``mouseMoved``, ``mouseReleased`` or ``mouseWheel``."""
        buttons = {"button": "left", "buttons": 1, "clickCount": 1} if kind != "mouseWheel" else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **buttons, **more)
        self.settle()

    def size(self, width: int, height: int) -> None:
        """Set the window's size in CSS pixels."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)

    def box(self, selector: str) -> dict[str, float]:
        """Return x, y, width and height of an element in the window."""
        script = f"""(() => {{ const b = document.querySelector({json.dumps(selector)})
            .getBoundingClientRect(); return {{x: b.x, y: b.y, width: b.width, height: b.height}}
            }})()"""
        return dict(self.run(script))

    def picture(self, selector: str = "") -> np.ndarray:
        """Return what the window, or an element inside it, looks like: (height, width, 3) uint8."""
        answer = self.call("Page.captureScreenshot", format="png", optimizeForSpeed=True)
        with Pillow.open(io.BytesIO(base64.b64decode(answer["data"]))) as shot:
            pixels = np.asarray(shot.convert("RGB"))
        if not selector:
            return pixels
        box = {key: round(value) for key, value in self.box(selector).items()}
        assert box["x"] >= 0 and box["y"] >= 0, f"{selector} is not inside the window: {box}"
        return pixels[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]]

    def _next(self) -> dict[str, Any]:
        """Return the next message; events are noted on the way."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            block = os.read(self.read, 1 << 20)
            assert block, "the browser has ended"
            self.buffer += block
        first, _, self.buffer = self.buffer.partition(b"\0")
        message = dict(json.loads(first))
        params, method = message.get("params", {}), message.get("method", "")
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"]))
        return message


@contextmanager
def browser(executable: str, folder: Path) -> Iterator[Tab]:
    """Start a browser with its profile under ``folder`` and yield a tab; end it afterwards."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Out of the way of 3 and 4, which the browser reads and writes.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 30) for fd in (theirs_in, theirs_out)]

    def place() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--mute-audio"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--disable-dev-shm-usage"]
    flags += ["--no-first-run", "--disable-background-networking", "--disable-extensions"]
    environment = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    process = subprocess.Popen(
        [executable, *flags, "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(3, 4),
        preexec_fn=place,
        env=environment,
    )
    for fd in (theirs_in, theirs_out, *high):
        os.close(fd)
    tab = Tab(process, ours_out, ours_in)
    try:
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        attached = tab.call("Target.attachToTarget", targetId=target, flatten=True)
        tab.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
