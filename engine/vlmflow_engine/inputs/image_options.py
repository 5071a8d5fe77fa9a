"""What a caller asks of one image, beside or inside its part of a message."""

from collections.abc import Mapping
from typing import Any

from vlmflow_engine.checks import is_whole
from vlmflow_engine.errors import InvalidRequestError

_COUNTS = ("max_dynamic_patch", "min_pixels", "max_pixels")
# OpenAI's word for how closely to look, as a number of tiles; "auto" leaves it to the model.
_TILES_BY_DETAIL = {"low": 6, "medium": 12, "high": 24}


def read_image_options(*places: Mapping[str, Any]) -> dict[str, int]:
    """Gather max_dynamic_patch, min_pixels and max_pixels; a later place wins over an earlier one.

    A model that has no use for an option ignores it; a wrong value raises InvalidRequestError.
    """
    given = {key: value for place in places for key, value in place.items() if value is not None}
    options: dict[str, int] = {}
    if (detail := given.get("detail", "auto")) != "auto":
        if not isinstance(detail, str) or detail not in _TILES_BY_DETAIL:
            raise InvalidRequestError(
                f"an image's detail is one of auto, {', '.join(_TILES_BY_DETAIL)}, "
                f"got {repr(detail)[:80]}"
            )
        options["max_dynamic_patch"] = _TILES_BY_DETAIL[detail]
    for name in _COUNTS:
        if name in given:
            value = given[name]
            if not is_whole(value) or value < 1:
                raise InvalidRequestError(
                    f"an image's {name} is a whole number of at least 1, got {repr(value)[:80]}"
                )
            options[name] = value
    low, high = options.get("min_pixels"), options.get("max_pixels")
    if low is not None and high is not None and low > high:
        raise InvalidRequestError(f"an image's min_pixels={low} is above its max_pixels={high}")
    return options
