"""`report.html`: the report as one page for people. It loads nothing and runs nothing.

What users wrote (prompts, answers, ids, URIs) is text, whatever it looks like: the template escapes
all that it shows, and the page forbids scripts and requests to itself.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from vlmflow.job.plots import job_plots
from vlmflow.job.progress import format_seconds
from vlmflow.job.report import matches
from vlmflow.job.samples import Sample
from vlmflow.job.timeline import JobTimeline

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_TEXT = 700  # characters shown of a prompt or an answer
MAX_NAME = 200  # of an id or a URI
MAX_ATTEMPTS = 50

# What no text of a page may hold: controls but for tab and line feed, and half surrogate pairs.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

_PARTS = {
    "startup": "the engine loads the model",
    "images": "the engine is empty, images are being fetched",
    "preprocessing": "the engine is empty, images are being decoded and prompts tokenised",
    "vision": "images are encoded",
    "prefill": "prompts are computed",
    "decode": "answers are generated",
    "store": "results are being committed, and nothing else can be done",
    "restart": "the engine died and loads again",
    "other": "scheduling, handling of answers, what nobody measured",
}


@dataclass(frozen=True, slots=True)
class Failed:
    """An example of a failure."""

    error_class: str
    example: dict[str, Any]  # as in report.json
    prompt: str | None  # None if the line is no record, or the manifest is gone


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    meaning: str
    seconds: float
    share: float


@dataclass(frozen=True, slots=True)
class _Card:
    line: dict[str, Any]
    prompt: str | None
    picture: str | None  # a data URL
    expected: list[str]
    is_match: bool


def render_page(
    report: dict[str, Any],
    timeline: JobTimeline,
    samples: Sequence[Sample],
    failed: Sequence[Failed],
    *,
    failure_reason: str | None,
) -> str:
    """Make the page of a report."""
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            failure_reason=failure_reason,
            plots=job_plots(timeline),
            parts=_parts(report["time"]["parts"]),
            cards=[_card(sample) for sample in samples],
            classes=sorted(report["failures"].items(), key=lambda item: -item[1]["count"]),
            failed=failed,
            attempts=report["attempts"][-MAX_ATTEMPTS:],
            max_text=MAX_TEXT,
            max_name=MAX_NAME,
        )
    )


def clean(value: Any) -> Any:
    """Replace characters that a page cannot hold."""
    return _UNSHOWN.sub("\ufffd", value) if isinstance(value, str) else value


def cut(text: str, length: int) -> str:
    """A text's beginning, and how long it is where that is not all."""
    return text if len(text) <= length else f"{text[:length]} … ({len(text):,} characters)"


@cache
def page_environment(package: str = "vlmflow.job") -> "Environment":
    """Where templates of pages are: a package's own, then the job's, whose style all share."""
    # Not at the top: planning a job needs no templates.
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader(name, "templates") for name in dict.fromkeys((package, "vlmflow.job"))]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    environment.filters |= {
        "cut": cut,
        "clock": format_seconds,
        "count": lambda value: f"{value:,}",
        "decimal": decimal,
        "moment": lambda text: datetime.fromisoformat(text).strftime("%-d %b %Y, %H:%M UTC"),
        "percent": lambda value: "–" if value is None else f"{100 * value:.1f} %",
    }
    return environment


def decimal(value: float | None) -> str:
    """Three digits that matter, without an exponent."""
    if value is None:
        return "–"
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 and abs(value) >= 0.1 else f"{value:.3g}"


def _parts(seconds: dict[str, float]) -> list[_Part]:
    total = sum(seconds.values())
    return [
        _Part(name, _PARTS[name], seconds[name], seconds[name] / total if total else 0.0)
        for name in _PARTS
    ]


def _card(sample: Sample) -> _Card:
    expected = sample.line.get("expected")
    allowed = expected if isinstance(expected, list) else [expected]
    return _Card(
        line=sample.line,
        prompt=sample.prompt,
        picture=data_url(sample.thumbnail),
        expected=[] if expected is None else [str(item) for item in allowed],
        is_match=expected is not None and matches(sample.line["text"], expected),
    )


def data_url(picture: bytes | None) -> str | None:
    """A PNG or JPEG as it may stand in a page."""
    if picture is None:
        return None
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
