"""Times that the author of a DAG gives."""

from numbers import Real
from typing import Any


def check_seconds(name: str, value: Any, *, is_zero_allowed: bool = False) -> float:
    """A time that an author gave. Raises ValueError, which is an import error of the DAG."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (value > 0 or (is_zero_allowed and value == 0)):
        least = "0 or more" if is_zero_allowed else "more than 0"
        raise ValueError(f"{name} must be a number of seconds, {least}, got {value!r}")
    return float(value)
