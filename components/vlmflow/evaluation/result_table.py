"""Results as one Parquet table: the job's own, or `results.parquet` of an MLflow run.

Columns are looked for by name, and only `id` and `text` must be there.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlmflow.evaluation.answer import EXPECTED, Answer, ImageReference
from vlmflow.job.errors import SpecError

_ROWS_PER_BATCH = 4096
_METADATA = "metadata"


def read_table(path: Path, name: str) -> Iterator[Answer]:
    """Yield the answers of a table, in its order. Raises SpecError, which calls it `name`."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            missing = {"id", "text"} - set(table.schema_arrow.names)
            if missing:
                raise SpecError(f"{name} is no table of results: it has no column {min(missing)!r}")
            ordinal = 0
            for batch in table.iter_batches(_ROWS_PER_BATCH):
                for row in batch.to_pylist():
                    yield _answer(row, ordinal)
                    ordinal += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise SpecError(f"{name} cannot be read as Parquet: {error}") from error


def _answer(row: dict[str, Any], place: int) -> Answer:
    error_class = row.get("error_class") or _error_class(row.get("error"))
    is_failed = error_class is not None or row.get("status") in ("failed", "skipped", "error")
    if is_failed and error_class is None:
        error_class = "unknown"
    ordinal = row.get("ordinal")
    return Answer(
        record_id=row["id"],
        ordinal=place if ordinal is None else int(ordinal),
        text=None if is_failed or row["text"] is None else str(row["text"]),
        fields=_fields(row),
        images=tuple(_images(row)),
        error_class=error_class or ("unknown" if row["text"] is None else None),
    )


def _error_class(error: Any) -> str | None:
    if isinstance(error, dict):
        error = error.get("class") or error.get("error_class")
    return str(error) if error else None


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """What the manifest passed through: the column may hold all of it, or the field `metadata`."""
    stored = row.get(_METADATA)
    if isinstance(stored, str):
        with suppress(ValueError):
            stored = json.loads(stored)
    fields: dict[str, Any] = {}
    if isinstance(stored, dict):
        is_all = EXPECTED in stored or isinstance(stored.get(_METADATA), dict)
        fields = dict(stored) if is_all else {**stored, _METADATA: stored}
    elif stored is not None:
        fields[_METADATA] = stored
    if row.get(EXPECTED) is not None:
        fields[EXPECTED] = _expected(row[EXPECTED])
    return fields


def _expected(value: Any) -> Any:
    """A column of texts may hold them as JSON. A number or a `true` stays the text it is."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, list | dict | str) else value


def _images(row: dict[str, Any]) -> Iterator[ImageReference]:
    for image in row.get("images") or ():
        if isinstance(image, dict) and image.get("uri") is not None:
            yield ImageReference(image["uri"], image.get("sha256"))
    uris, digests = row.get("image_uris") or (), row.get("image_sha256") or ()
    for index, uri in enumerate(uris):
        yield ImageReference(uri, digests[index] if index < len(digests) else None)
