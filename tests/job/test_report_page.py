"""The page shows what users wrote as text, loads nothing, and says what the report says."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.job.hostile import HOSTILE, hostile_job
from tests.job.jobs import FAKE_ENGINE, records, run_job, write_manifest
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.report_page import MAX_TEXT, Failed, clean, cut, render_page
from vlmflow.job.samples import Sample
from vlmflow.job.timeline import COLUMNS, WorkingTime, lay_over

_TAGS = (
    "html head meta link title style body main header section article figure figcaption div p h1 "
    "h2 h3 small span i bdi code ul li dl dt dd table tr th td img svg path rect"
)
_ATTRIBUTES = (
    "lang charset name content http-equiv rel href class aria-label role style title viewbox "
    "preserveaspectratio d x width height scope dir src alt"
)
TAGS, ATTRIBUTES = set(_TAGS.split()), set(_ATTRIBUTES.split())


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._inside:
            self.text += data


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check_is_inert(page: Page) -> None:
    assert page.tags <= TAGS
    for name, value in page.attributes:
        assert name in ATTRIBUTES, (name, value)
        if name in ("src", "href"):
            assert value.startswith("data:")


def report_of(tmp_path: Path, **spec: Any) -> tuple[dict[str, Any], str]:
    manifest = write_manifest(tmp_path / "m.jsonl", records(12))
    report = run_job(tmp_path, manifest, tmp_path / "out", **spec)
    return report, (tmp_path / "out/m/report.html").read_text(encoding="utf-8")


def empty_timeline() -> Any:
    return lay_over([], WorkingTime.of([]), max_steps=10)


def test_page_of_a_hostile_manifest_is_nothing_but_text(tmp_path):
    folder, _ = hostile_job(tmp_path)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    check_is_inert(page)
    for number, text in enumerate(HOSTILE):
        if len(text) < 200:
            shown = clean(text).strip()
            assert page.text.count(shown) >= 3, "prompt, expected answer and id"
            assert clean(f"{number} {text}") in page.text
    assert f"{'W' * MAX_TEXT} … (5,000 characters)" in page.text
    assert "49" not in page.text.split("{{ 7 * 7 }}")[1][:20]


@pytest.mark.parametrize("text", [*HOSTILE, "half a pair \ud800"])
def test_hostile_text_is_text_wherever_it_stands(tmp_path, text):
    report, _ = report_of(tmp_path)
    report["job"]["model"] = report["manifest"]["uri"] = text
    report["mlflow"] = {"error": text}
    report["engine"]["device_name"] = text
    example = {"id": text, "ordinal": 1, "line": 2, "stage": "fetch", "message": text}
    report["failures"] = {text: {"count": 1, "stages": {text: 1}, "examples": [example]}}
    line = {"id": text, "ordinal": 0, "text": text, "expected": [text, 5], "seconds": 0.5,
            "usage": {"completion_tokens": 3}, "finish_reason": text}  # fmt: skip
    html = render_page(
        report,
        empty_timeline(),
        [Sample(line, text, None)],
        [Failed(text, example, text)],
        failure_reason=text,
    )
    html.encode()
    page = Page(html)
    check_is_inert(page)
    assert page.text.count(clean(text)[:100].strip()) >= 10


def test_page_forbids_scripts_and_requests_to_itself(tmp_path):
    _, html = report_of(tmp_path)
    policy = next(value for name, value in Page(html).attributes if "default-src" in value)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_page_says_what_the_report_says(tmp_path):
    report, html = report_of(tmp_path, price_per_hour=2.5)
    text = Page(html).text
    for shown in ("12 of 12", "exact match", "Cost per 1,000 records", report["job"]["identity"]):
        assert shown.lower() in text.lower()
    assert "question 7" in text and "expected:" in text
    assert "Failures" not in text
    assert Path(report["results"]["report_html"]).read_text(encoding="utf-8") == html


def test_page_of_a_job_that_failed_says_why(tmp_path):
    report, _ = report_of(tmp_path)
    html = render_page(report, empty_timeline(), [], [], failure_reason="2 of 3 records failed")
    assert "2 of 3 records failed" in Page(html).text


def test_page_without_manifest_shows_the_answers_alone(tmp_path, monkeypatch):
    from vlmflow.job.errors import ManifestError
    from vlmflow.job.manifest import Manifest

    def gone(self, plan, ordinals):
        raise ManifestError("gone")

    monkeypatch.setattr(Manifest, "pick", gone)
    report, html = report_of(tmp_path)
    text = Page(html).text
    assert report["counts"]["succeeded"] == 12
    assert "question 7" not in text and "12 of 12 answers" in text


def test_plots_hold_as_much_for_a_long_job_as_for_a_short_one(tmp_path):
    report, _ = report_of(tmp_path)
    row = [1.0 if name == "seconds" else 7.0 for name in COLUMNS]
    written = [{"started": 1e6 * n, "points": [row] * 600} for n in range(5)]
    working = WorkingTime.of([(1e6 * n, 1e6 * n + 600) for n in range(5)])
    timeline = lay_over(written, working, max_steps=120)
    html = render_page(report, timeline, [], [], failure_reason=None)
    page = Page(html)
    check_is_inert(page)
    assert len(html) < 150_000
    assert html.count('class="pause"') == 4 * 6
    assert "stopped for 277h36m" in html


def test_text_is_cut_where_it_is_too_long():
    assert cut("abc", 3) == "abc"
    assert cut("a" * 2000, 3) == "aaa … (2,000 characters)"
