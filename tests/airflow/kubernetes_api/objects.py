"""What all parts of the fake need of the API's objects: errors, times, selectors, patches."""

import copy
from datetime import UTC, datetime
from typing import Any


class ApiError(Exception):
    """Becomes a Status object with this code."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def is_over(pod: dict[str, Any]) -> bool:
    """Whether a pod has come to its end."""
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def select(
    store: dict[tuple[str, str], dict[str, Any]], namespace: str, selector: str
) -> list[dict[str, Any]]:
    """Copies of what a namespace holds with such labels."""
    return [
        copy.deepcopy(item)
        for (where, _), item in store.items()
        if where == namespace and _matches(selector, item["metadata"].get("labels") or {})
    ]


def _matches(selector: str, labels: dict[str, str]) -> bool:
    """`a=b,c!=d,e,!f`: what our clients write."""
    return all(_holds(term.strip(), labels) for term in selector.split(",") if term.strip())


def _holds(term: str, labels: dict[str, str]) -> bool:
    if "!=" in term:
        key, _, value = term.partition("!=")
        return labels.get(key) != value
    if "=" in term:
        key, _, value = term.replace("==", "=").partition("=")
        return labels.get(key) == value
    if term.startswith("!"):
        return term[1:] not in labels
    return term in labels


def matches_fields(selector: str, item: dict[str, Any]) -> bool:
    """`involvedObject.name=x`, for objects of plain fields."""
    for term in filter(None, selector.split(",")):
        path, _, wanted = term.partition("=")
        value: Any = item
        for step in path.split("."):
            value = value.get(step, {})
        if value != wanted:
            return False
    return True


def merged(base: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
