"""CSV as in RFC 4180, with a row of names: commas, quotes doubled in quotes, lines in quotes."""

import csv
from collections.abc import Callable, Iterable, Iterator

from vlmflow.job.dialects import lines
from vlmflow.job.dialects.item import Item, LineError, bad_line
from vlmflow.job.dialects.json_lines import BYTE_ORDER_MARK
from vlmflow.job.dialects.lines import split_lines
from vlmflow.job.dialects.reading import Reading
from vlmflow.job.dialects.source import ManifestSource
from vlmflow.job.dialects.table import KNOWN_BY, Table
from vlmflow.job.errors import ManifestError


def is_header(line: bytes) -> bool:
    """Whether a line names columns of ours."""
    try:
        return any(not KNOWN_BY.isdisjoint(names) for _, names in _Rows([line]) if names)
    except LineError:
        return False


class CsvTable:
    def __init__(self, source: ManifestSource, prompt: str | None) -> None:
        """Read the header. Raises ManifestError."""
        self.is_seekable = source.codec is None
        self._source = source
        rows = _Rows(source.content())
        try:
            names = next((names for _, names in rows if names), None)
        except LineError as error:
            raise ManifestError(f"manifest {source.uri!r}: its header is {error}") from error
        self._names = names or []
        self._table = Table(self._names, prompt, source.uri)
        self._header_end = rows.byte

    def items(self, reading: Reading) -> Iterator[Item]:
        """Yield the items from the reading's position on."""
        chunks = self._source.content(reading.byte, reading.tally)
        rows = _Rows(chunks, line=reading.line, byte=reading.byte)
        while True:
            row: list[str] | None = None
            record_id, fault = None, ""
            try:
                number, row = next(rows)
            except StopIteration:
                return
            except LineError as error:
                number, fault = rows.first_line, str(error)
            if rows.byte <= self._header_end:
                continue
            reading.line, reading.byte = rows.line, rows.byte
            if row == []:
                continue
            ordinal = reading.ordinal
            reading.ordinal += 1
            try:
                if row is None:
                    raise LineError(fault)
                if len(row) != len(self._names):
                    raise LineError(f"{len(row)} fields, the header has {len(self._names)}")
                fields = dict(zip(self._names, row, strict=True))
                record_id = self._table.id_of(fields, ordinal)
                item: Item = self._table.record(fields, ordinal, number)
            except LineError as error:
                item = bad_line(ordinal, number, record_id, error)
            yield item


class _Rows:
    """Iterates (line it begins in, fields); no fields for a blank line.

    A row that cannot be read raises LineError, and the next line begins another.
    """

    def __init__(self, chunks: Iterable[bytes], *, line: int = 0, byte: int = 0) -> None:
        self.first_line = line
        self.line = line  # lines that are read
        self.byte = byte  # behind them
        self._num_bytes = 0  # of the row
        self._lines = split_lines(chunks, line=line, byte=byte)
        # One limit for the whole process, and a field may hold an image as a data URL.
        csv.field_size_limit(max(csv.field_size_limit(), lines.MAX_LINE_BYTES))
        self._reader = csv.reader(_Lines(self._next_line), strict=True)

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> tuple[int, list[str]]:
        self.first_line = self.line + 1
        self._num_bytes = 0
        try:
            row = next(self._reader)
        except csv.Error as error:
            raise LineError("not CSV: quotes do not match, or a line ends in CR alone") from error
        is_blank = not row or (len(row) == 1 and not row[0].strip())
        return self.first_line, [] if is_blank else row

    def _next_line(self) -> str:
        self.line, self.byte, content = next(self._lines)
        self._num_bytes += len(content) + 1
        if self._num_bytes > lines.MAX_LINE_BYTES + 1:
            raise LineError(f"longer than {lines.MAX_LINE_BYTES:,} bytes")
        if self.line == 1:
            content = content.removeprefix(BYTE_ORDER_MARK)
        try:
            return content.decode() + "\n"
        except UnicodeDecodeError as error:
            raise LineError("not UTF-8") from error


class _Lines:
    """Not a generator: those end with their first error."""

    def __init__(self, next_line: Callable[[], str]) -> None:
        self._next_line = next_line

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        return self._next_line()
