"""Drives a headless Chromium over its DevTools protocol: just what the page test needs."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)
PATIENCE_S = 30.0
NAVIGATED = ("navigated or closed", "context was destroyed", "Cannot find context")
"""Parts of the messages about a page that goes to another address while it is asked."""


STILL = """(async () => {
  const element = document.querySelector(%s);
  if (!element) return null;
  element.scrollIntoView({ block: "center", behavior: "instant" });
  const place = () => {
    const box = element.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const before = place();
  await new Promise(done => setTimeout(done, 50));
  if (String(before) !== String(place())) return null;
  window.metByTest = false;
  element.addEventListener("click", () => { window.metByTest = true; }, { once: true, capture: true });
  return before;
})()"""
"""The middle of an element that has not moved for 50 ms, or null; `metByTest` tells whether it was clicked since."""


class Navigated(RuntimeError):
    """The page went to another address before it answered."""


def count(selector: str) -> str:
    """The expression for how many elements a selector finds."""
    return f"document.querySelectorAll('{selector}').length"


def texts(browser: Browser, selector: str) -> list[str]:
    """Texts of the elements of a selector."""
    return list(browser.evaluate(f"[...document.querySelectorAll('{selector}')].map(e => e.textContent)"))


def find_browser() -> str | None:
    """Return the path of a browser that can be driven, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of one browser. `log` collects what the page wrote to the console, its exceptions and refusals."""

    def __init__(self, program: str, profile: Path) -> None:
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._open = contextlib.ExitStack()
        self._connection: ClientConnection | None = None
        self._number = 0
        self._session: str | None = None
        self.log: list[str] = []
        try:
            self._attach(profile / "DevToolsActivePort")
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._open.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _attach(self, port_file: Path) -> None:
        end = time.monotonic() + PATIENCE_S
        while not port_file.exists() or len(port_file.read_text().splitlines()) < 2:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the browser did not start")
            time.sleep(0.05)
        port, path = port_file.read_text().splitlines()[:2]
        websocket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)
        self._connection = self._open.enter_context(websocket)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        assert self._connection is not None
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(timeout=PATIENCE_S))
            if answer.get("id") == self._number:
                if "error" in answer:
                    if any(each in answer["error"].get("message", "") for each in NAVIGATED):
                        raise Navigated(answer["error"]["message"])
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.log.append(json.dumps(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            self.log.append(f"{parameters['entry']['level']}: {parameters['entry']['text']}")
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.log.append(f"console: {json.dumps(parameters['args'])}")

    def scheme(self, name: str) -> None:
        """Prefer `light` or `dark`."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, url: str) -> None:
        """Go to a page and wait until all of its elements are there; what its scripts load may still be coming."""
        self.send("Page.navigate", url=url)
        here = f"document.URL.startsWith({json.dumps(url)}) && document.readyState !== 'loading'"
        self.wait_for(here, f"the document of {url}")

    def evaluate(self, expression: str) -> Any:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait_for(self, expression: str, what: str) -> Any:
        end = time.monotonic() + PATIENCE_S
        while not (value := self._now(expression)):
            if time.monotonic() > end:
                raise AssertionError(f"waited in vain for {what}; the page logged {self.log}")
            time.sleep(0.05)
        return value

    def _now(self, expression: str) -> Any:
        """The value of an expression; None while the page goes to another address."""
        with contextlib.suppress(Navigated):
            return self.evaluate(expression)
        return None

    def click(self, selector: str) -> None:
        """Click the middle of an element as a person would, so that something lying over it is noticed.

        What arrives late may move the element between the look and the click, so that the click meets something else:
        the element waits until it stands still, and a click that it did not get is made again.

        Raises AssertionError where the element is not there, or gets no click.
        """
        name = json.dumps(selector)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            box = self.wait_for(STILL % name, f"{selector}, standing still")
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
            if self._now("window.metByTest !== false") is not False:  # None: the click led to another page
                return
        raise AssertionError(f"{selector} got no click: something lies over it; the page logged {self.log}")

    def type(self, selector: str, text: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
