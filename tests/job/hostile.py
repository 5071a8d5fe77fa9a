"""Texts that try to be more than text, and a job that is full of them."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from tests.job.jobs import run_job, write_manifest

# Each asks the page's own server for /pwned, should it ever come to life.
HOSTILE = (
    "<script>fetch('/pwned')</script>",
    "</style><img src=/pwned onerror=\"fetch('/pwned')\">",
    '" autofocus onfocus="fetch(\'/pwned\')" x="',
    "' onmouseover='fetch(1)'",
    "</title><link rel=stylesheet href=/pwned><base href=/pwned>",
    "<!-- <iframe src=/pwned>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "&lt;b&gt; &amp;amp; a & b",
    "javascript:fetch('/pwned')",
    "\u202eright to left\u2066 and never back",
    "\u05d0\u05d1\u05d2 \u0627\u0644\u0639 mixed",
    "tab\tline\nnul\x00 escape\x1b[31m delete\x7f c1\x9b",
    "W" * 5000,
    "many words " * 2000,
)


def hostile_job(tmp_path: Path, **spec: Any) -> tuple[Path, dict[str, Any]]:
    """Run it with the fake engine, and return its folder and its report."""
    for number, colour in enumerate(("red", "green", "blue")):
        file = io.BytesIO()
        Image.new("RGB", (200 * (number + 1), 200), colour).save(file, "PNG")
        (tmp_path / f"{number}.png").write_bytes(file.getvalue())
    lines: list[Any] = []
    for number, text in enumerate(HOSTILE):
        name = f"{number} {text}"
        lines.append(
            {"id": name, "prompt": text, "expected": text, "images": [f"{number % 3}.png"]}
        )
        lines.append({"id": f"gone {name}", "prompt": text, "images": [f"no/{text[:200]}.png"]})
        lines.append(
            {"id": f"refused {name}", "prompt": f"refuse {text}", "expected": [text, text]}
        )
        lines.append({"id": f"bad {name}", "prompt": text, "generation": {text[:100]: 1}})
    manifest = write_manifest(tmp_path / "m.jsonl", [*lines, "<script>no JSON"])
    limits = {"max_failure_rate": 1.0}
    report = run_job(tmp_path, manifest, tmp_path / "out", name="job", limits=limits, **spec)
    return tmp_path / "out/job", report
