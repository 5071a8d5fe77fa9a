"""The native manifest as numbered lines, for callers that bring the bytes themselves."""

from collections.abc import Iterable, Iterator

from vlmflow.job.dialects.item import BadLine
from vlmflow.job.dialects.json_lines import parse_line
from vlmflow.job.dialects.lines import split_lines
from vlmflow.job.dialects.native import NativeDialect
from vlmflow.job.record import Record

__all__ = ["BadLine", "parse_records", "read_lines"]


def read_lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Split a byte stream into lines, numbered from 1. A line too long comes cut off."""
    for number, _, line in split_lines(chunks):
        yield number, line


def parse_records(lines: Iterable[tuple[int, bytes]]) -> Iterator[Record | BadLine]:
    """Turn numbered lines into records; every line but a blank one comes out."""
    dialect, ordinal = NativeDialect(), 0
    for number, line in lines:
        if line.strip():
            yield parse_line(dialect, ordinal, number, line)
            ordinal += 1
