"""Generation options of other dialects as ours, checked."""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from vlmflow.job.dialects.item import LineError
from vlmflow.job.generation import parse_generation
from vlmflow_engine.errors import ConfigError

_MAX_CACHED_CHARACTERS = 4096


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as they are. Raises LineError if a record may not have them."""
    if not options:
        return options
    # Most lines of a manifest have the same few options: the text, since True equals 1.
    text = json.dumps(options)
    is_short = len(text) <= _MAX_CACHED_CHARACTERS
    fault = _fault_of_text(text) if is_short else _fault(options)
    if fault:
        raise LineError(f"'generation': {fault}")
    return options


@lru_cache(maxsize=256)
def _fault_of_text(text: str) -> str:
    return _fault(json.loads(text))


def _fault(options: dict[str, Any]) -> str:
    try:
        parse_generation(options)
    except (ConfigError, TypeError) as error:
        # A TypeError of a dataclass names its own __init__; the user need not know it.
        return str(error).replace("GenerationConfig.__init__() got an ", "")
    return ""


def renamed(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Take their options under our names. Raises LineError if two say different things."""
    ours: dict[str, Any] = {}
    for theirs, name in names.items():
        value = fields.get(theirs)
        if value is None:
            continue
        if name in ours and ours[name] != value:
            raise LineError(f"{theirs!r} contradicts another field for the same")
        ours[name] = value
    return ours


def sampled(options: dict[str, Any]) -> dict[str, Any]:
    """Spell out what the dialects leave unsaid: who names a temperature wants samples.

    A list of one stop word may be a text by itself; `top_k` -1 is no limit.
    """
    if isinstance(options.get("stop_words"), str):
        options["stop_words"] = [options["stop_words"]]
    if options.get("top_k") == -1:
        options["top_k"] = 0
    if "temperature" in options:
        options["do_sample"] = options["temperature"] != 0
    elif options.get("top_p", 1) != 1 or options.get("top_k", 1) != 1:
        options["do_sample"] = True
    return options


def refuse_others(
    fields: Mapping[str, Any],
    where: str,
    *,
    known: Iterable[str],
    only: Mapping[str, tuple[Any, ...]],
) -> None:
    """Raise LineError for a field that is not known, or has a value that asks for too much.

    known   fields that are taken, or that change nothing about an answer
    only    fields that may have these values (or null) and no others
    """
    for name, value in fields.items():
        if name in known or value is None:
            continue
        if name not in only:
            raise LineError(f"{where}.{name} is not supported; leave it out")
        if value not in only[name]:
            allowed = " or ".join(json.dumps(one) for one in only[name])
            raise LineError(
                f"{where}.{name} is not supported"
                + (f" but for {allowed}" if allowed else "; leave it out")
            )
