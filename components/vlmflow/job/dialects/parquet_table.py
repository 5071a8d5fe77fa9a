"""Parquet, a few rows at a time."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any

from vlmflow.job.dialects import lines
from vlmflow.job.dialects.item import Item, LineError, bad_line
from vlmflow.job.dialects.reading import Reading
from vlmflow.job.dialects.source import ManifestSource
from vlmflow.job.dialects.table import ONE_IMAGE, SEVERAL_IMAGES, Table
from vlmflow.job.dialects.temporary import TemporaryPath
from vlmflow.job.errors import ManifestError

MAGIC = b"PAR1"
_MAX_BATCH_ROWS = 1024
_MAX_BATCH_BYTES = 16 << 20


class ParquetTable:
    """The file is downloaded once, into a temporary one: Parquet begins at its end."""

    is_seekable = False

    def __init__(self, source: ManifestSource, prompt: str | None) -> None:
        self._source = source
        self._prompt = prompt
        self._file: TemporaryPath | None = None

    def items(self, reading: Reading) -> Iterator[Item]:
        """Yield the items from the reading's position on. Raises ManifestError."""
        self._download(reading)
        with self._opened() as file:
            table = Table(file.schema_arrow.names, self._prompt, self._source.uri)
            _check_types(file.schema_arrow, self._source.uri)
            first = 0  # ordinal of the row group's first row
            for index in range(file.num_row_groups):
                group = file.metadata.row_group(index)
                if first + group.num_rows > reading.ordinal:
                    yield from self._rows(file, index, first, table, reading)
                first += group.num_rows

    def _rows(
        self, file: Any, index: int, first: int, table: Table, reading: Reading
    ) -> Iterator[Item]:
        group = file.metadata.row_group(index)
        row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
        num_rows = max(1, min(_MAX_BATCH_ROWS, _MAX_BATCH_BYTES // row_bytes))
        ordinal = first
        for batch in file.iter_batches(num_rows, row_groups=[index], use_threads=False):
            skipped = min(max(0, reading.ordinal - ordinal), batch.num_rows)
            ordinal += skipped
            for row in _plain_rows(batch.slice(skipped)):
                reading.ordinal = reading.line = ordinal + 1
                yield _item(table, row, ordinal)
                ordinal += 1

    def _download(self, reading: Reading) -> None:
        if self._file is not None:
            with self._file.path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    reading.tally.add(chunk)
            return
        target = TemporaryPath()
        with target.path.open("wb") as file:
            for chunk in self._source.content(tally=reading.tally):
                file.write(chunk)
        self._file = target

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow
        import pyarrow.parquet

        assert self._file is not None
        try:
            with pyarrow.parquet.ParquetFile(self._file.path) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise ManifestError(
                f"manifest {self._source.uri!r} is no sound Parquet file: {reason}"
            ) from error


def _check_types(schema: Any, uri: str) -> None:
    for name in ONE_IMAGE + SEVERAL_IMAGES:
        if name in schema.names:
            kind = str(schema.field(name).type)
            if "struct" in kind or "binary" in kind or "map" in kind:
                raise ManifestError(
                    f"manifest {uri!r}: column {name!r} is {kind[:80]}; images are named by URIs, "
                    "as string or list<string>"
                )


def _plain_rows(batch: Any) -> Iterator[dict[str, Any] | LineError]:
    """The batch's rows as JSON knows them; an error for a row that cannot be one."""
    try:
        rows = batch.to_pylist()
    except ValueError:  # one of them has a text that is not UTF-8, or a date that Python has not
        for index in range(batch.num_rows):
            try:
                [row] = batch.slice(index, 1).to_pylist()
                yield _plain(row)
            except ValueError:
                yield LineError("a value cannot be read (a text that is not UTF-8, or a date)")
        return
    for row in rows:
        yield _plain(row)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value) if isinstance(value, Decimal) else repr(value)


def _item(table: Table, row: dict[str, Any] | LineError, ordinal: int) -> Item:
    record_id = None
    try:
        if isinstance(row, LineError):
            raise row
        record_id = table.id_of(row, ordinal)
        if sum(len(value) for value in row.values() if isinstance(value, str)) > (
            lines.MAX_LINE_BYTES
        ):
            raise LineError(f"longer than {lines.MAX_LINE_BYTES:,} characters")
        return table.record(row, ordinal, ordinal + 1)
    except LineError as error:
        return bad_line(ordinal, ordinal + 1, record_id, error, kind="row")
