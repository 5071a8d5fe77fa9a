"""What CSV and Parquet share: rows under named columns.

id              optional: without it the row's number makes one
prompt          unless the job has one
image, image_uri, image_url       one URI
images, image_uris, image_urls    several: in CSV a JSON list, or one URI
expected        as in the native dialect
any other       a field of the result's `metadata`
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.messages import images_then_text
from vlmflow.job.dialects.passed_through import passed_through
from vlmflow.job.dialects.strict_json import loads
from vlmflow.job.errors import ManifestError
from vlmflow.job.record import Record

ONE_IMAGE = ("image", "image_uri", "image_url")
SEVERAL_IMAGES = ("images", "image_uris", "image_urls")
KNOWN_BY = frozenset(("prompt", *ONE_IMAGE, *SEVERAL_IMAGES))
_NOT_IN_TABLES = ("messages", "generation")


class Table:
    """The columns of a table, and how a row of them becomes a record."""

    def __init__(self, columns: Sequence[str], job_prompt: str | None, uri: str) -> None:
        """Raises ManifestError if the columns make no manifest."""

        def refuse(reason: str) -> ManifestError:
            return ManifestError(f"manifest {uri!r}: {reason}")

        if "" in columns:
            raise refuse("a column has no name")
        name, count = Counter(columns).most_common(1)[0] if columns else ("", 0)
        if count > 1:
            raise refuse(f"{count} columns are named {name[:200]!r}")
        for name in _NOT_IN_TABLES:
            if name in columns:
                raise refuse(f"column {name!r} is not for tables; use the native dialect for it")
        images = [name for name in columns if name in ONE_IMAGE + SEVERAL_IMAGES]
        if len(images) > 1:
            raise refuse(f"columns {images[0]!r} and {images[1]!r} are both images; keep one")
        if ("prompt" in columns) == (job_prompt is not None):
            raise refuse(
                "there is a column 'prompt', and the job has a prompt too; leave out one of them"
                if job_prompt is not None
                else "there is no column 'prompt', and the job has no prompt either; give one"
            )
        self._has_id = "id" in columns
        self._job_prompt = job_prompt
        self._image_column = images[0] if images else None
        self._further = [c for c in columns if c not in ("id", "prompt", self._image_column)]

    def id_of(self, row: dict[str, Any], ordinal: int) -> str | None:
        """The record's id; None if the row's own is none."""
        if not self._has_id:
            return f"row-{ordinal + 1}"
        value = row["id"]
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return value if isinstance(value, str) and value else None

    def record(self, row: dict[str, Any], ordinal: int, line: int) -> Record:
        """Raises LineError."""
        record_id = self.id_of(row, ordinal)
        if record_id is None:
            raise LineError("'id' must be a string that is not empty")
        prompt = row["prompt"] if self._job_prompt is None else self._job_prompt
        if not isinstance(prompt, str):
            raise LineError("'prompt' must be a string")
        uris = _uris(row[self._image_column], self._image_column) if self._image_column else ()
        further = {name: row[name] for name in self._further}
        if further.get("expected") == "":
            del further["expected"]
        return Record(
            ordinal=ordinal,
            line=line,
            record_id=record_id,
            prompt=images_then_text(len(uris), prompt),
            image_uris=uris,
            generation={},
            passed_through=passed_through(further),
        )


def _uris(value: Any, column: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        if column in ONE_IMAGE or not value.startswith("["):
            return (value,)
        try:
            value = loads(value.encode())
        except LineError:
            value = None
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise LineError(f"{column!r} must be a URI or a list of URIs")
    return tuple(value)
