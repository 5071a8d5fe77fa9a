"""What of a record is none of our business, and goes into its result."""

from typing import Any


def passed_through(fields: dict[str, Any], metadata: Any = None) -> dict[str, Any]:
    """Sort a foreign dialect's further fields: `expected` stays, the rest becomes `metadata`.

    So no field of theirs can bear the name of one of a result's. `metadata` is what the request
    itself calls so.
    """
    kept: dict[str, Any] = {}
    if fields.get("expected") is not None:
        kept["expected"] = fields["expected"]
    more: dict[str, Any] = {}
    for source in (metadata, fields.get("metadata")):
        if isinstance(source, dict):
            more |= source
        elif source is not None:
            more["metadata"] = source
    more |= {k: v for k, v in fields.items() if k not in ("expected", "metadata")}
    if more:
        kept["metadata"] = more
    return kept
