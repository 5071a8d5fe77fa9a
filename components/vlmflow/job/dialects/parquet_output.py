"""Results and failures as one Parquet table, a row a record."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from vlmflow.job.record import RESULT_FIELDS

_ROWS_PER_GROUP = 10_000
_OWN_FIELDS = RESULT_FIELDS | {"id", "images"}


def results_schema() -> Any:
    """The table's columns. Those of an answer are null for a failure, and the other way round."""
    import pyarrow as pa

    image = pa.struct([("uri", pa.string()), ("sha256", pa.string()), ("num_bytes", pa.int64())])
    return pa.schema(
        [
            pa.field("id", pa.string()),  # null where a line had none
            pa.field("ordinal", pa.int64(), nullable=False),
            pa.field("status", pa.string(), nullable=False),  # succeeded or failed
            pa.field("text", pa.string()),
            pa.field("expected", pa.string()),  # JSON, as it may be a list or a number
            pa.field("finish_reason", pa.string()),
            pa.field("prompt_tokens", pa.int64()),
            pa.field("completion_tokens", pa.int64()),
            pa.field("cached_tokens", pa.int64()),
            pa.field("images", pa.list_(image), nullable=False),
            pa.field("seconds", pa.float64()),
            pa.field("attempts", pa.int32(), nullable=False),
            pa.field("line", pa.int64()),
            pa.field("error_stage", pa.string()),
            pa.field("error_class", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("error_retryable", pa.bool_()),
            pa.field("metadata", pa.string()),  # JSON of all that the manifest passed through
        ]
    )


class ResultsTable:
    """Writes the table to a file; holds one row group in memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self._schema = results_schema()
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "ResultsTable":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()

    def add(self, line: dict[str, Any]) -> None:
        """Add a line of our results or failures."""
        self._rows.append(results_row(line))
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def results_row(line: dict[str, Any]) -> dict[str, Any]:
    """A line of our results or failures as a row of the table."""
    usage, error = line.get("usage", {}), line.get("error", {})
    passed_through = {name: value for name, value in line.items() if name not in _OWN_FIELDS}
    return {
        "id": line["id"],
        "ordinal": line["ordinal"],
        "status": "failed" if "error" in line else "succeeded",
        "text": line.get("text"),
        "expected": _json(line["expected"]) if line.get("expected") is not None else None,
        "finish_reason": line.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "cached_tokens": usage.get("cached_tokens"),
        "images": line.get("images", []),
        "seconds": line.get("seconds"),
        "attempts": line.get("attempts", error.get("attempts")),
        "line": line.get("line"),
        "error_stage": error.get("stage"),
        "error_class": error.get("class"),
        "error_message": error.get("message"),
        "error_retryable": error.get("retryable"),
        "metadata": _json(passed_through) if passed_through else None,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
