"""The page in a real browser: quiet, asking for nothing, and no wider than its window.

Needs a Chromium on the PATH. KEEP_SCREENSHOTS names a folder for those who want to look.
"""

import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from tests.job.hostile import HOSTILE, hostile_job
from tests.job.jobs import FAKE_ENGINE
from vlmflow.job.engine_process import COMMAND_VARIABLE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser on the PATH: {', '.join(BROWSERS)}"),
]

# It is of the same origin as the page in its frame, so it may measure it.
MEASURE = """<!DOCTYPE html>
<iframe src="/report.html" style="width:{width}px;height:600px"></iframe>
<script>document.querySelector("iframe").onload = e =>
document.body.append("measured " + e.target.contentDocument.documentElement.scrollWidth)</script>"""


@dataclass
class Site:
    """A server on loopback that serves a few pages and remembers what it was asked for."""

    url: str
    pages: dict[str, bytes]
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            page = site.pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Site(f"http://127.0.0.1:{server.server_port}", {})
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Runs the browser to its end; returns its standard output and what it wrote to its console."""

    def browse(*arguments: str) -> tuple[str, str]:
        done = subprocess.run(
            [
                str(BROWSER),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--hide-scrollbars",
                "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'browser'}",
                "--virtual-time-budget=5000",
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return done.stdout, "\n".join(console)

    return browse


@pytest.fixture
def page(tmp_path: Path, monkeypatch) -> bytes:
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.1")
    folder, _ = hostile_job(tmp_path, price_per_hour=2.5)
    return (folder / "report.html").read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_drawn_without_a_word_or_a_request(site, browse, page, tmp_path, scheme):
    site.pages["/report.html"] = page
    shot = Path(os.environ.get("KEEP_SCREENSHOTS", tmp_path)) / f"{scheme}.png"
    number = {"dark": 0, "light": 1}[scheme]
    _, console = browse(
        f"--screenshot={shot}",
        "--window-size=1200,2400",
        f"--blink-settings=preferredColorScheme={number}",
        f"{site.url}/report.html",
    )
    assert console == ""
    assert site.asked == ["/report.html"]
    with Image.open(shot) as image:
        assert image.size == (1200, 2400)
        red, green, blue = image.convert("RGB").getpixel((2, 2))
        assert (min(red, green, blue) > 230) if scheme == "light" else (max(red, green, blue) < 40)
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 200, "plots, text and pictures were drawn"


def test_page_that_trusts_its_texts_would_be_found_out(site, browse):
    site.pages["/report.html"] = f"<body>{HOSTILE[0]}{HOSTILE[1]}".encode()
    browse("--dump-dom", f"{site.url}/report.html")
    assert "/pwned" in site.asked


@pytest.mark.parametrize("width", [360, 1000])
def test_page_is_no_wider_than_a_phone(site, browse, page, width):
    site.pages |= {"/report.html": page, "/": MEASURE.replace("{width}", str(width)).encode()}
    dom, _ = browse("--dump-dom", f"{site.url}/")
    found = re.search(r"measured (\d+)<", dom)
    assert found is not None and int(found[1]) <= width
