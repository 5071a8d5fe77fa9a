"""The dialects of JSON lines: one record a line, in one dialect throughout."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from vlmflow.job.dialects import lines
from vlmflow.job.dialects.item import Item, LineError, bad_line
from vlmflow.job.dialects.lines import split_lines
from vlmflow.job.dialects.reading import Reading
from vlmflow.job.dialects.signs import LINE_SIGNS, dialect_of
from vlmflow.job.dialects.strict_json import loads
from vlmflow.job.record import Record

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineDialect(Protocol):
    """How a JSON object becomes a record."""

    name: str
    id_field: str
    id_is_optional: bool  # then the line's number makes one

    def record(self, content: dict[str, Any], record_id: str, ordinal: int, line: int) -> Record:
        """Raises LineError."""


def read_items(dialect: LineDialect, chunks: Iterable[bytes], reading: Reading) -> Iterator[Item]:
    """Turn lines into items; every line but a blank one comes out."""
    for number, end, line in split_lines(chunks, line=reading.line, byte=reading.byte):
        reading.line, reading.byte = number, end
        if not line or line.isspace():
            continue
        item = parse_line(dialect, reading.ordinal, number, line)
        reading.ordinal += 1
        reading.raw = line
        yield item


def parse_line(dialect: LineDialect, ordinal: int, number: int, line: bytes) -> Item:
    """Turn one line into a record, or into the reason why it is none."""
    record_id: str | None = None
    try:
        content = parse_object(number, line)
        record_id = id_of(content, dialect, number)
        if not LINE_SIGNS[dialect.name](content):
            other = dialect_of(content)
            if other is not None:
                raise LineError(
                    f"a line of dialect {other!r} in a manifest of dialect {dialect.name!r}; "
                    "a manifest has one dialect: put these lines into one of their own"
                )
        if record_id is None:
            raise LineError(f"{dialect.id_field!r} must be a string that is not empty")
        return dialect.record(content, record_id, ordinal, number)
    except LineError as error:
        return bad_line(ordinal, number, record_id, error)


def parse_object(number: int, line: bytes) -> dict[str, Any]:
    """Raises LineError if a line is no JSON object."""
    if len(line) > lines.MAX_LINE_BYTES:
        raise LineError(f"longer than {lines.MAX_LINE_BYTES:,} bytes")
    content = loads(line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line)
    if not isinstance(content, dict):
        raise LineError(f"a record is a JSON object, this is a {type(content).__name__}")
    return content


def id_of(content: dict[str, Any], dialect: LineDialect, number: int) -> str | None:
    """The record's id, made of the line's number where the dialect lets it be left out."""
    if dialect.id_is_optional and content.get(dialect.id_field) is None:
        return f"line-{number}"
    value = content.get(dialect.id_field)
    return value if isinstance(value, str) and value else None
