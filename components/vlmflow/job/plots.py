"""Plots over time as plain data: paths in per mille of a box, and labels in per cent beside it.

The box is stretched to whatever width there is, its labels are text of the page: so a plot is read
on a phone and on paper alike, and needs neither a library nor a script.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlmflow.job.progress import format_seconds
from vlmflow.job.timeline import JobTimeline

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
_MAX_X_TICKS = 6
_SHOWN_PAUSE_SECONDS = 5.0

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a plot. Between a None and its neighbours there is no line."""

    name: str
    values: Values


@dataclass(frozen=True, slots=True)
class Plot:
    """What the page's template draws. Paths are in a box of 1000 by 1000, y downwards."""

    title: str
    names: list[str]  # of the lines, where there is more than one
    lines: list[str]  # path data
    areas: list[str]  # the same down to zero
    y_ticks: list[tuple[float, str]]  # per cent from the top
    x_ticks: list[tuple[float, str]]  # per cent from the left
    pauses: list[tuple[float, str]]  # likewise
    columns: list[tuple[float, float, str]]  # left and width per mille, and what to say of them


def job_plots(timeline: JobTimeline) -> list[Plot]:
    """The plots of a job's page."""
    columns = timeline.columns
    finished = timeline.rate("records")
    failed = timeline.rate("failed")
    records = [Series("finished", finished)]
    if any(failed):
        records.append(Series("failed", failed))
    plots = [make_plot("Records per second", records, timeline)]
    if any(columns["images"]):
        images = [Series("images", timeline.rate("images"))]
        plots.append(make_plot("Images per second", images, timeline))
    for name, title in (
        ("output_tokens", "Output tokens per second"),
        ("prefill_tokens", "Prompt tokens computed per second"),
    ):
        if any(columns[name]):
            plots.append(make_plot(title, [Series(name, timeline.rate(name))], timeline))
    occupancy = timeline.share("running", "places")
    if any(occupancy):
        series = [Series("occupancy", [None if v is None else 100 * v for v in occupancy])]
        plots.append(make_plot("Batch occupancy, %", series, timeline, highest=100.0))
    queues = [Series("ready for the engine", timeline.rate("waiting"))]
    if any(columns["fetching"]):
        queues.append(Series("fetching images", timeline.rate("fetching")))
    if any(any(series.values) for series in queues):
        plots.append(make_plot("Records waiting", queues, timeline))
    return plots


def make_plot(
    title: str, series: Sequence[Series], timeline: JobTimeline, *, highest: float | None = None
) -> Plot:
    """Draw values, one a step of the timeline, as steps."""
    num_steps = len(series[0].values)
    top = highest or _nice_top(max((v or 0.0 for s in series for v in s.values), default=0.0))
    total = num_steps * timeline.step_seconds
    width = 1000 / num_steps
    columns = []
    for step in range(num_steps):
        moment = format_seconds(step * timeline.step_seconds)
        texts = [_said(s, step, len(series) > 1) for s in series]
        columns.append((round(step * width, 2), round(width, 2), f"{moment}: {', '.join(texts)}"))
    return Plot(
        title=title,
        names=[s.name for s in series] if len(series) > 1 else [],
        lines=[_path(s.values, top, is_area=False) for s in series],
        areas=[_path(s.values, top, is_area=True) for s in series],
        y_ticks=[(100 * (1 - share), _label(top * share)) for share in (0.0, 0.5, 1.0)],
        x_ticks=_x_ticks(total),
        pauses=[
            (round(100 * position / total, 2), f"stopped for {format_seconds(seconds)}")
            for position, seconds in timeline.pauses
            if seconds >= _SHOWN_PAUSE_SECONDS
        ],
        columns=columns,
    )


def _path(values: Values, top: float, *, is_area: bool) -> str:
    """Steps: each value is level over its own width."""
    width = 1000 / len(values)
    parts: list[str] = []
    is_drawing = False
    for step, value in enumerate(values):
        left, right = _short(step * width), _short((step + 1) * width)
        if value is None:
            is_drawing = False
            continue
        height = _short(1000 * (1 - min(value / top, 1.0)))
        if is_area:
            parts.append(f"M{left} 1000V{height}H{right}V1000Z")
        else:
            parts.append(f"V{height}H{right}" if is_drawing else f"M{left} {height}H{right}")
        is_drawing = True
    return "".join(parts)


def _x_ticks(total: float) -> list[tuple[float, str]]:
    step = next((s for s in _STEPS if total / s <= _MAX_X_TICKS), None)
    if step is None:
        step = 86400 * math.ceil(total / 86400 / _MAX_X_TICKS)
    return [
        (round(100 * number * step / total, 2), format_seconds(number * step))
        for number in range(int(total / step) + 1)
    ]


def _nice_top(value: float) -> float:
    """The least of 1, 2, 4, 5, 6, 8 times a power of ten that is not below a value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((n * power for n in (1, 2, 4, 5, 6, 8) if n * power >= value), 10 * power)


def _label(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):g} {letter}"
    return f"{value:,.6g}"


def _said(series: Series, step: int, is_named: bool) -> str:
    value = series.values[step]
    text = "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{series.name} {text}" if is_named else text


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
