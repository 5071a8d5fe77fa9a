"""A headless Chromium, driven through its DevTools: open a page, wait for words, click, look."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websocket import create_connection

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
_SIZE = (1500, 900)
_CLICK = """(() => {
    const all = [...document.querySelectorAll("button, a, [role=tab]")];
    const found = all.find(e => [e.innerText?.trim(), e.ariaLabel, e.title].includes(TEXT));
    found?.click();
    return Boolean(found);
})()"""


class Page:
    """One tab."""

    def __init__(self, address: str) -> None:
        self._socket = create_connection(address, timeout=60, suppress_origin=True)
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while (answer := json.loads(self._socket.recv())).get("id") != self._number:
            pass  # an event
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def open(self, url: str, *words: str, seconds: float = 60) -> None:
        """Go there, and wait until all the words are to be read."""
        self.call("Page.navigate", url=url)
        self.wait_for(*words, seconds=seconds)

    def text(self) -> str:
        """What can be read, and what the fields of forms hold."""
        return str(
            self.evaluate(
                "(document.body?.innerText ?? '') + '\\n' + "
                "[...document.querySelectorAll('input, textarea')].map(e => e.value).join('\\n')"
            )
        )

    def wait_for(self, *words: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while missing := [word for word in words if word not in (text := self.text())]:
            if time.monotonic() > deadline:
                raise AssertionError(f"{missing} never came; the page says: {text[:3000]}")
            time.sleep(0.2)

    def click(self, text: str, seconds: float = 60) -> None:
        """Click the first button or link of that text or label, once it is there."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(_CLICK.replace("TEXT", json.dumps(text))):
            assert time.monotonic() < deadline, f"no {text!r} to click: {self.text()[:3000]}"
            time.sleep(0.2)

    def target_of(self, text: str) -> str:
        """Where the link of that text leads."""
        links = "[...document.querySelectorAll('a')]"
        wanted = json.dumps(text)
        return str(self.evaluate(f"{links}.find(e => e.innerText?.trim() === {wanted})?.href"))

    def screenshot(self, file: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(folder: Path, cookies: dict[str, str], url: str) -> Iterator[Page]:
    """Start one with cookies for the server at `url`; yield its tab."""
    folder.mkdir()
    process = subprocess.Popen(
        [
            str(BROWSER),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--window-size={_SIZE[0]},{_SIZE[1]}",
            f"--user-data-dir={folder}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        page = Page(_address(process, folder))
        try:
            for name, value in cookies.items():
                page.call("Network.setCookie", name=name, value=value, url=url)
            page.call(
                "Emulation.setDeviceMetricsOverride",
                **{"width": _SIZE[0], "height": _SIZE[1], "deviceScaleFactor": 1, "mobile": False},
            )
            yield page
        finally:
            page.close()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: "subprocess.Popen[bytes]", folder: Path) -> str:
    file, deadline = folder / "DevToolsActivePort", time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and (lines := file.read_text().split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json", timeout=10) as answer:
                pages = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise RuntimeError("the browser did not start")
