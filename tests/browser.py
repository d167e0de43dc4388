"""A headless Chromium, driven through its DevTools protocol over a pipe, with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Escape": 27}
CODES |= {"Enter": 13, " ": 32, "PageDown": 34, "Tab": 9}
ALT, CTRL, SHIFT = 1, 2, 8


class Browser:
    """One page. Errors that it logs, or that its script raises, are kept in ``errors``; what it downloads goes into
    ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.errors, self._last, self._read, self.keys = folder, [], 0, b"", 0
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        words += [f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900", "about:blank"]
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # the browser reads from 3 and writes to 4
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *words],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def send(self, method: str, **parameters: object) -> dict:
        """Call a method of the protocol and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next())["id"] != self._last:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _next(self) -> dict:
        """The next answer; events are noted on the way."""
        while True:
            while b"\0" not in self._read:
                assert select.select([self._in], [], [], 60)[0], "the browser does not answer"
                data = os.read(self._in, 1 << 20)
                assert data, "the browser has ended"
                self._read += data
            text, _, self._read = self._read.partition(b"\0")
            message = json.loads(text)
            if "id" in message:
                return message
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"])

    def open(self, page: Path) -> None:
        """Load a page and wait until it is whole."""
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(page.resolve().as_uri())}")

    def js(self, expression: str) -> object:
        """The value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until an expression in the page is true."""
        end = time.monotonic() + seconds
        while not self.js(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def key(self, *names: str, modifiers: int = 0) -> None:
        """Press keys, each with the modifiers."""
        for name in names:
            self.keys += 1
            code = CODES.get(name, ord(name.upper()) if len(name) == 1 else 0)
            about = {"key": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
            text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
            text = {} if not text or modifiers & (ALT | CTRL) else {"text": text}
            self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def mouse(self, *path: tuple[float, float], modifiers: int = 0) -> None:
        """Press the button at the first point, move over the others, and let go at the last."""
        for i, (x, y) in enumerate([path[0], *path, path[-1]]):
            kind = "mousePressed" if i == 0 else "mouseReleased" if i == len(path) + 1 else "mouseMoved"
            about = {"button": "left", "buttons": int(kind != "mouseReleased"), "modifiers": modifiers}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, clickCount=1, **about)

    def middle(self, selector: str) -> tuple[float, float]:
        """Where the middle of an element is in the window, after it was scrolled there."""
        rect = "(e => (e.scrollIntoView({block: 'center'}), e.getBoundingClientRect()))"
        box = self.js(f"{rect}(document.querySelector({json.dumps(selector)})).toJSON()")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def download(self, name: str) -> Path:
        """A file that the page has just given, once it is whole."""
        end = time.monotonic() + 20
        while not (self.folder / name).is_file() or list(self.folder.glob("*.crdownload")):
            assert time.monotonic() < end, f"{name} was not downloaded"
            time.sleep(0.02)
        return self.folder / name

    def picture(self, path: Path, **viewport: object) -> None:
        """Write a screenshot."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **viewport)["data"]))

    def close(self) -> None:
        """End the browser."""
        os.close(self._out)
        self._process.terminate()
        self._process.wait()
        os.close(self._in)
