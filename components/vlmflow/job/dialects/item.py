"""What a manifest's reader yields, in whatever dialect the manifest is."""

from dataclasses import dataclass

from vlmflow.job.record import Failure, Record
from vlmflow_engine.errors import VlmflowError


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line (or a row) that is no record, and why."""

    ordinal: int
    line: int
    record_id: str | None
    failure: Failure


Item = Record | BadLine


class LineError(VlmflowError):
    """Why a line is no record. Never leaves a reader: it becomes a `BadLine`."""


def bad_line(
    ordinal: int, number: int, record_id: str | None, reason: object, *, kind: str = "line"
) -> BadLine:
    """Make the item that stands where a record would. `kind`: what the number counts."""
    failure = Failure("manifest", "invalid_line", f"{kind} {number}: {reason}")
    return BadLine(ordinal, number, record_id, failure)
