"""`evaluation.parquet`: a row a record, with image, prompt, answer, expected answer and scores."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from vlmflow.evaluation.answer import Answer

_ROWS_PER_GROUP = 10_000


class EvaluationTable:
    """Writes the table to a file; holds one row group in memory."""

    def __init__(self, path: Path, scorer_names: list[str], slice_fields: list[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        texts = ("id", "image", "prompt", "answer", "expected", "error_class")
        fields = [pa.field(name, pa.string()) for name in texts]
        fields.insert(1, pa.field("ordinal", pa.int64(), nullable=False))
        fields += [pa.field(f"score.{name}", pa.float64()) for name in scorer_names]
        fields += [pa.field(f"slice.{name}", pa.string()) for name in slice_fields]
        self._schema = pa.schema(fields)
        self._slice_fields = slice_fields
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "EvaluationTable":
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

    def add(self, answer: Answer, expected: Any, scores: dict[str, float]) -> None:
        row = evaluation_row(answer, expected) | {
            f"score.{name}": value for name, value in rounded(scores).items()
        }
        row |= {f"slice.{name}": _text(answer.field(name)) for name in self._slice_fields}
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def evaluation_row(answer: Answer, expected: Any) -> dict[str, Any]:
    """An answer without its scores, as JSON can hold it."""
    return {
        "id": answer.record_id,
        "ordinal": answer.ordinal,
        "image": answer.images[0].uri if answer.images else None,
        "prompt": answer.prompt,
        "answer": answer.text,
        "expected": _text(expected),
        "error_class": answer.error_class,
    }


def rounded(scores: dict[str, float]) -> dict[str, float | None]:
    """Six digits behind the point; None for a record that a scorer left out."""
    return {name: None if math.isnan(v) else round(v, 6) for name, v in scores.items()}


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
