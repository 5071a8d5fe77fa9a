"""The tree that errors.py draws is the tree that callers catch by."""

import inspect
import re

import pytest

from vlmflow_engine import errors

CLASSES = {
    name: error
    for name, error in inspect.getmembers(errors, inspect.isclass)
    if error.__module__ == errors.__name__
}
REQUEST_ERRORS = [error for error in CLASSES.values() if issubclass(error, errors.RequestError)]


def test_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert _drawn_parents(errors.__doc__ or "") == {
        name: error.__bases__[0].__name__
        for name, error in CLASSES.items()
        if error is not errors.VlmflowError
    }


def test_class_of_failure_names_one_error_only() -> None:
    names = [error.error_class for error in REQUEST_ERRORS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("error", REQUEST_ERRORS, ids=lambda error: error.__name__)
def test_every_request_error_happens_at_a_known_stage(error: type[errors.RequestError]) -> None:
    assert error.stage in ("prepare", "fetch", "decode", "generate")


def _drawn_parents(drawing: str) -> dict[str, str]:
    """Read a tree drawn with |-- and `--: the parent of each name but the root's."""
    parents: dict[str, str] = {}
    branch: list[str] = []
    for line in drawing.splitlines():
        if found := re.match(r"([|` ]*(?:-- )?)([A-Z]\w+Error)\b", line):
            depth = len(found[1]) // 4
            branch[depth:] = [found[2]]
            if depth:
                parents[found[2]] = branch[depth - 1]
    return parents
