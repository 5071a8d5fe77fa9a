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


def print_comparison(content: dict[str, Any], out: IO[str]) -> None:
    """Print a comparison: scores, slices, speed and cost, notes, and the gate."""
    console, records = make_console(out), content["records"]
    for run in ("a", "b"):
        about = content[run]
        console.print(
            f"{run.upper()}  {escape(about['name'])}: {about['records']:,} records, "
            f"{about['failed']:,} failed",
            soft_wrap=True,
        )
    console.print(f"{records['in_both']:,} records in both, {records['changed']:,} answers changed")
    level = f"{content['bootstrap']['level']:.0%}"
    console.print(_paired_table("score", [("", content["scores"])], level))
    for field, slices in content["slices"].items():
        shown = [(item["value"], item["scores"]) for item in slices[:_MAX_SLICES]]
        console.print(_paired_table(field, shown, level))
        if len(slices) > _MAX_SLICES:
            console.print(f"{len(slices) - _MAX_SLICES} more values of {escape(field)}")
    console.print(_performance_table(content["performance"]))
    for which, run in (("only_in_a", "A"), ("only_in_b", "B")):
        if records[which]["count"]:
            names = ", ".join(str(name) for name in records[which]["examples"])
            more = ", ..." if records[which]["count"] > len(records[which]["examples"]) else ""
            console.print(f"only in {run}: {escape(names)}{more}", soft_wrap=True)
    for note in content["notes"]:
        console.print(escape(note), soft_wrap=True)
    if content["gate"] is not None:
        _print_gate(console, content["gate"])


def _print_gate(console: Console, gate: dict[str, Any]) -> None:
    for clause in gate["clauses"]:
        console.print(
            f"  {'holds' if clause['holds'] else 'fails'}  {escape(clause['clause'])}: "
            f"A {clause['a'] if clause['a'] is None else round(clause['a'], 6)}, "
            f"B {round(clause['b'], 6)}",
            soft_wrap=True,
        )
    verdict = "passed" if gate["passed"] else "not passed"
    console.print(f"gate {escape(gate['gate'])}: [bold]{verdict}[/bold]", soft_wrap=True)


def _paired_table(
    title: str, groups: list[tuple[str, dict[str, dict[str, Any] | None]]], level: str
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    headings = ("A", "B", "B - A", f"{level} interval", "wins", "losses", "ties", "p")
    table.add_column(title)
    table.add_column("scorer")
    for heading in headings:
        table.add_column(heading, justify="right")
    for value, scores in groups:
        for name, score in scores.items():
            cells = ["-"] * len(headings) if score is None else _paired_cells(score)
            table.add_row(escape(value), name, *cells)
            value = ""
    return table


def _paired_cells(score: dict[str, Any]) -> list[str]:
    return [
        number(score["mean_a"]),
        number(score["mean_b"]),
        number(score["difference"], sign=True),
        f"{number(score['low'], sign=True)} to {number(score['high'], sign=True)}",
        f"{score['wins']:,}",
        f"{score['losses']:,}",
        f"{score['ties']:,}",
        f"{score['p_value']:.3g}",
    ]


def _performance_table(metrics: dict[str, dict[str, float | None]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("speed and cost")
    for heading in ("A", "B", "B / A"):
        table.add_column(heading, justify="right")
    for name, values in metrics.items():
        if values["a"] is None and values["b"] is None:
            continue
        ratio = values["ratio"]
        table.add_row(
            name,
            *("-" if values[run] is None else f"{values[run]:,.4g}" for run in ("a", "b")),
            "-" if ratio is None else f"{ratio:.3f}x",
        )
    return table
