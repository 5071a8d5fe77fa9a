"""`comparison.html`: two runs side by side, as one page that loads nothing and runs nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmflow.evaluation.performance import MORE_IS_BETTER, NEUTRAL
from vlmflow.job.report_page import MAX_NAME, MAX_TEXT, data_url, page_environment

MAX_SLICES = 40  # shown of a field
_SURE = 0.05  # a p-value below that is called a difference


@dataclass(frozen=True, slots=True)
class _Span:
    """An interval on the axis of differences, in per cent of its width."""

    left: float
    width: float
    at: float  # the difference itself


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    num_records: int | None  # of a slice
    score: dict[str, Any]
    span: _Span
    verdict: str  # better, worse, or even


@dataclass(frozen=True, slots=True)
class _Speed:
    name: str
    a: float | None
    b: float | None
    ratio: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class _Card:
    row: dict[str, Any]
    picture: str | None  # a data URL
    expected: str | None
    score_a: float | None  # of the first scorer
    score_b: float | None


def render_comparison(content: dict[str, Any], pictures: Sequence[bytes | None]) -> str:
    """Make the page of comparison.json; `pictures` are of its rows, as files."""
    limit = _axis_limit(content)
    scores = [_row(name, None, s, limit) for name, s in content["scores"].items() if s is not None]
    slices = [
        (field, scorer, _slice_rows(items, scorer, limit), len(items))
        for field, items in content["slices"].items()
        for scorer in content["scores"]
    ]
    first = next(iter(content["scores"]))
    return (
        page_environment("vlmflow.evaluation")
        .get_template("compare.html.j2")
        .render(
            content=content,
            scores=scores,
            slices=[item for item in slices if item[2]],
            speeds=_speeds(content["performance"]),
            cards=[_card(r, p, first) for r, p in zip(content["rows"], pictures, strict=True)],
            limit=limit,
            level=content["bootstrap"]["level"],
            max_text=MAX_TEXT,
            max_name=MAX_NAME,
        )
    )


def _axis_limit(content: dict[str, Any]) -> float:
    """The axis of all intervals goes from minus this to plus this."""
    groups = [content["scores"]]
    groups += [i["scores"] for items in content["slices"].values() for i in items[:MAX_SLICES]]
    ends = [abs(s[end]) for g in groups for s in g.values() if s for end in ("low", "high")]
    return max(ends, default=0.0) or 0.01


def _row(name: str, num_records: int | None, score: dict[str, Any], limit: float) -> _Row:
    def place(value: float) -> float:
        return round(50 + 50 * value / limit, 2)

    left = place(score["low"])
    span = _Span(left, round(place(score["high"]) - left, 2), place(score["difference"]))
    verdict = "even"
    if score["p_value"] < _SURE:
        verdict = "better" if score["wins"] > score["losses"] else "worse"
    return _Row(name, num_records, score, span, verdict)


def _slice_rows(items: list[dict[str, Any]], scorer: str, limit: float) -> list[_Row]:
    return [
        _row(item["value"], item["records"], item["scores"][scorer], limit)
        for item in items[:MAX_SLICES]
        if item["scores"][scorer] is not None
    ]


def _speeds(metrics: dict[str, dict[str, float | None]]) -> list[_Speed]:
    found = []
    for name, values in metrics.items():
        if values["a"] is None and values["b"] is None:
            continue
        ratio, verdict = values["ratio"], "even"
        if ratio is not None and abs(ratio - 1) >= 0.01 and name not in NEUTRAL:
            verdict = "better" if (ratio > 1) == (name in MORE_IS_BETTER) else "worse"
        found.append(_Speed(name.replace("_", " "), values["a"], values["b"], ratio, verdict))
    return found


def _card(row: dict[str, Any], picture: bytes | None, scorer: str) -> _Card:
    expected = row["expected"]
    if isinstance(expected, list) and all(isinstance(item, str) for item in expected):
        expected = " or ".join(dict.fromkeys(expected))
    elif expected is not None and not isinstance(expected, str):
        expected = json.dumps(expected, ensure_ascii=False)
    return _Card(row, data_url(picture), expected, row["scores_a"][scorer], row["scores_b"][scorer])
