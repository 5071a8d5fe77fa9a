"""JSON that can be written again as it was read: finite, of whole characters, not too deep."""

from math import isinf
from typing import Any

from pydantic_core import from_json

from vlmflow.job.dialects.item import LineError

MAX_DEPTH = 100  # what reads a value must be able to write it, however deep the stack is by then


def loads(data: bytes) -> Any:
    """Parse UTF-8 JSON. Raises LineError.

    pydantic's parser takes a quarter of the time of the standard library's, and refuses NaN and
    half a surrogate pair by itself.
    """
    try:
        value = from_json(data, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        raise LineError("not valid JSON") from None
    _check([value], MAX_DEPTH)
    return value


def _check(values: Any, depth: int) -> None:
    for value in values:
        kind = type(value)
        if kind is str:
            continue
        if kind is float:
            if isinf(value):  # 1e999
                raise LineError("not valid JSON: a number is too large")
        elif kind is dict or kind is list:
            if depth == 0:
                raise LineError(f"more than {MAX_DEPTH} lists and objects in one another")
            _check(value.values() if kind is dict else value, depth - 1)
