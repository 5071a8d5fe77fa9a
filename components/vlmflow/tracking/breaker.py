"""Leaves a server alone for a while that has just failed."""

import time

from mlflow.exceptions import MlflowException  # noqa: TID253

FIRST_PAUSE_SECONDS = 5.0  # after a failure; then twice as long each time
MAX_PAUSE_SECONDS = 60.0

# What a server answers that is well: the fault is in what it was asked.
_ANSWERS = frozenset(
    (
        "ALREADY_EXISTS",
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "NOT_FOUND",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_CONFLICT",
        "RESOURCE_DOES_NOT_EXIST",
    )
)


class Breaker:
    """Open while the server is to be left alone. One thread uses it."""

    def __init__(self) -> None:
        self._pause_seconds = 0.0
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        return time.monotonic() < self._until

    def failed(self) -> None:
        twice = max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds)
        self._pause_seconds = min(twice, MAX_PAUSE_SECONDS)
        self._until = time.monotonic() + self._pause_seconds

    def succeeded(self) -> None:
        self._pause_seconds = self._until = 0.0


def is_server_trouble(error: Exception) -> bool:
    """Whether the same call may succeed later: the server is away, busy, or has a fault."""
    if isinstance(error, MlflowException):
        return error.error_code not in _ANSWERS
    return isinstance(error, OSError)  # requests' own are OSErrors too
