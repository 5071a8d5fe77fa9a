"""Plots of a finished job as PNG files, by the matplotlib that MLflow brings."""

from pathlib import Path
from typing import Any

from vlmflow.job.timeline import JobTimeline

_SIZE = (9.0, 3.6)  # inches
_DPI = 110


def draw_figures(folder: Path, timeline: JobTimeline, report: dict[str, Any]) -> None:
    """Draw speed, the engine's load and what the time went to."""
    _over_time(
        folder / "throughput.png",
        timeline,
        "Throughput",
        "per second",
        {"records": timeline.rate("records"), "images": timeline.rate("images")},
    )
    _over_time(
        folder / "tokens.png",
        timeline,
        "Tokens",
        "per second",
        {
            "prefill": timeline.rate("prefill_tokens"),
            "output": timeline.rate("output_tokens"),
        },
    )
    _over_time(
        folder / "queues.png",
        timeline,
        "Records before the engine",
        "records",
        {
            "images being fetched": timeline.rate("fetching"),
            "waiting for the engine": timeline.rate("waiting"),
        },
    )
    _time_parts(folder / "time.png", report["time"]["parts"])


def _over_time(
    path: Path, timeline: JobTimeline, title: str, unit: str, lines: dict[str, list[float]]
) -> None:
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and wants a display

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for name, values in lines.items():
        seconds = [(step + 0.5) * timeline.step_seconds for step in range(len(values))]
        axes.plot(seconds, values, label=name, marker="." if len(values) < 3 else "")
    for position, _ in timeline.pauses:
        axes.axvline(position, color="grey", linestyle=":")
    axes.set(title=title, xlabel="seconds of work", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path)


def _time_parts(path: Path, parts: dict[str, float]) -> None:
    from matplotlib.figure import Figure

    shown = {name: seconds for name, seconds in parts.items() if seconds > 0}
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(shown), list(shown.values()))
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(title="What the device's time went to", xlabel="seconds")
    figure.savefig(path)
