"""Results as the job writes them: JSON Lines, a line a record."""

import json
from collections.abc import Iterator
from typing import Any

from vlmflow.evaluation.answer import Answer, ImageReference
from vlmflow.job.dialects.lines import split_lines
from vlmflow.job.errors import SpecError
from vlmflow.job.record import RESULT_FIELDS
from vlmflow.job.store import Store

# A duplicate of an id was set aside, and its first record is there: nothing failed.
SKIPPED_CLASS = "duplicate_id"

_OWN_FIELDS = RESULT_FIELDS | {"id", "images"}


def read_lines(store: Store, keys: list[str]) -> Iterator[Answer]:
    """Yield the answers of files of results or failures, in their order. Raises SpecError."""
    for key in keys:
        for number, _, content in split_lines(store.stream(key)):
            if not content.strip():
                continue
            try:
                line = json.loads(content)
                yield answer_of_line(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SpecError(
                    f"{store.uri}/{key}: line {number} is no result of vlmflow; give a job's "
                    "output, its results/, or a results.parquet"
                ) from error


def answer_of_line(line: dict[str, Any]) -> Answer:
    """Raises KeyError, TypeError or AttributeError if the line is none of ours."""
    error = line.get("error")
    return Answer(
        record_id=line["id"],
        ordinal=int(line["ordinal"]),
        text=line["text"] if error is None else None,
        fields={name: value for name, value in line.items() if name not in _OWN_FIELDS},
        images=tuple(ImageReference(i["uri"], i.get("sha256")) for i in line.get("images", ())),
        error_class=None if error is None else error["class"],
    )
