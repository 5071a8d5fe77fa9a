"""What a request of another API asks for, in our terms."""

from dataclasses import dataclass, field
from typing import Any

from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.messages import Messages
from vlmflow.job.dialects.options import checked
from vlmflow.job.dialects.passed_through import passed_through
from vlmflow.job.record import Record


@dataclass(slots=True)
class Asked:
    """A request's body, read."""

    prompt: Messages
    generation: dict[str, Any] = field(default_factory=dict)
    metadata: Any = None
    model: Any = None

    def record(
        self, record_id: str, ordinal: int, line: int, further_fields: dict[str, Any]
    ) -> Record:
        """Raises LineError."""
        if not self.prompt.messages:
            raise LineError("there are no messages")
        return Record(
            ordinal=ordinal,
            line=line,
            record_id=record_id,
            prompt=self.prompt.messages,
            image_uris=tuple(self.prompt.uris),
            generation=checked(self.generation),
            passed_through=passed_through(further_fields, self.metadata),
        )


def without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    """The fields of a line that its dialect does not know."""
    return {name: value for name, value in content.items() if name not in names}


def object_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Raises LineError if a field is no object."""
    value = content.get(name)
    if not isinstance(value, dict):
        raise LineError(f"{name!r} must be an object")
    return value


def list_of(content: dict[str, Any], name: str) -> list[Any]:
    """Raises LineError if a field is no list with something in it."""
    value = content.get(name)
    if not isinstance(value, list) or not value:
        raise LineError(f"{name!r} must be a list that is not empty")
    return value


class OneModel:
    """Sees to it that all lines ask for the job's model, under one of its names.

    Without names any will do, but the same one throughout: the first of the file's beginning.
    """

    def __init__(self, names: frozenset[str] | None, first: str | None) -> None:
        self._names = names
        self._first = first

    def check(self, model: Any) -> None:
        """Raises LineError."""
        if model is None:
            return
        if not isinstance(model, str):
            raise LineError("'model' must be a string")
        if self._names is not None:
            if model not in self._names:
                allowed = ", ".join(repr(name) for name in sorted(self._names))
                raise LineError(f"model {model[:200]!r} is not the job's: {allowed}")
        elif model != self._first:
            first = f"{self._first[:200]!r}" if self._first else "none"
            raise LineError(
                f"model {model[:200]!r}, but the manifest begins with {first}; a job has one model"
            )
