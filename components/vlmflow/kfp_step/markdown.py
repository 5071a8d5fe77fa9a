"""Summaries in Markdown, as the Kubeflow UI shows them."""

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; what is None is a dash."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def page(title: str, *parts: str) -> bytes:
    """A heading and what follows it."""
    return ("\n\n".join([f"# {title}", *(part for part in parts if part)]) + "\n").encode()


def number(value: float | None, digits: int = 4) -> str:
    """As people read it."""
    return "-" if value is None else f"{value:,.{digits}f}"


def _cell(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
