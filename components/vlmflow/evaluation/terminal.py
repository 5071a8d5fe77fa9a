"""Evaluations and comparisons as tables on a terminal."""

from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WIDTH = 110  # where the output is no terminal
_MAX_SLICES = 20  # of a field


def make_console(out: IO[str]) -> Console:
    """A console; into a file it writes plain lines of a fixed width."""
    return Console(file=out, width=None if out.isatty() else _WIDTH, highlight=False)


def print_evaluation(content: dict[str, Any], out: IO[str]) -> None:
    """Print an evaluation: its scores, and then those of each slice."""
    console, counts = make_console(out), content["counts"]
    level = f"{content['bootstrap']['level']:.0%}"
    wording = {"wrong": "count as wrong", "leave-out": "are left out"}
    console.print(
        f"{counts['records']:,} records, {counts['failed']:,} failed: they "
        f"{wording[content['failed_count_as']]}"
    )
    console.print(_table("score", [("", content["scores"], counts["records"])], level))
    for field, slices in content["slices"].items():
        shown = [(s["value"], s["scores"], s["records"]) for s in slices[:_MAX_SLICES]]
        console.print(_table(field, shown, level))
        if len(slices) > _MAX_SLICES:
            console.print(f"{len(slices) - _MAX_SLICES} more values of {escape(field)}")
    for name, score in content["scores"].items():
        if score["faults"]:
            console.print(
                f"{name} could not score {score['faults']:,} answers; the first: "
                f"{escape(score['first_fault'])}"
            )
        if score["left_out"] > score["faults"]:
            console.print(
                f"{name} left {score['left_out'] - score['faults']:,} records out that it has "
                "nothing to compare with"
            )


def _table(title: str, groups: list[tuple[str, dict[str, Any], int]], level: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(title)
    for heading in ("scorer", "mean", f"{level} interval", "scored"):
        table.add_column(heading, justify="left" if heading == "scorer" else "right")
    for value, scores, _ in groups:
        for name, score in scores.items():
            table.add_row(
                escape(value),
                name,
                number(score["mean"]),
                f"{number(score['low'])} to {number(score['high'])}",
                f"{score['scored']:,}",
            )
            value = ""
    return table


def number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.4f}" if sign else f"{value:.4f}"
