"""The comparison's page in a real browser: quiet, asking for nothing, no wider than its window.

Needs a Chromium on the PATH. KEEP_SCREENSHOTS names a folder for those who want to look.
"""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation.test_compare_page import runs  # noqa: F401
from tests.job.test_page_in_browser import BROWSER, BROWSERS, MEASURE, browse, site  # noqa: F401
from vlmflow.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser on the PATH: {', '.join(BROWSERS)}"),
]


@pytest.fixture
def page(runs, tmp_path) -> bytes:  # noqa: F811
    file = tmp_path / "compare.html"
    arguments = ["compare", *runs, "--html", str(file), "--by", "expected"]
    assert main([*arguments, "--gate", "accuracy >= 0.1 and error_rate < 0.1"]) == 3
    return file.read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_drawn_without_a_word_or_a_request(site, browse, page, tmp_path, scheme):  # noqa: F811
    site.pages["/report.html"] = page
    shot = Path(os.environ.get("KEEP_SCREENSHOTS", tmp_path)) / f"compare-{scheme}.png"
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
        red, green, blue = image.convert("RGB").getpixel((2, 2))
        assert (min(red, green, blue) > 230) if scheme == "light" else (max(red, green, blue) < 40)
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 200, "tables, text and pictures were drawn"


@pytest.mark.parametrize("width", [360, 1000])
def test_page_is_no_wider_than_a_phone(site, browse, page, width):  # noqa: F811
    site.pages |= {"/report.html": page, "/": MEASURE.replace("{width}", str(width)).encode()}
    dom, _ = browse("--dump-dom", f"{site.url}/")
    found = re.search(r"measured (\d+)<", dom)
    assert found is not None and int(found[1]) <= width
