"""Scorers of other people: an entry point, `module:function`, or one of MLflow's.

A function takes what it names of `text`, `expected`, `prompt`, `metadata`, `images` (URIs),
`record_id`, and returns a number, True or False, or None for "cannot be told". An MLflow scorer
(`@mlflow.genai.scorers.scorer`, a built-in one, a judge) is given inputs = {"prompt": ...},
outputs = the text, and expectations = {"expected_response": ...}.
"""

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from vlmflow.evaluation.answer import Answer, references
from vlmflow.evaluation.scorers.base import Scorer
from vlmflow.job.errors import SpecError

GROUP = "vlmflow.scorers"

_WORDS = {"yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0, "pass": 1.0, "fail": 0.0}


def entry_point_names() -> list[str]:
    """The names that installed distributions declare."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load_entry_point(name: str) -> Any:
    """What a distribution declares by this name; None if none does."""
    found = tuple(entry_points(group=GROUP, name=name))
    return found[0].load() if found else None


def load_object(path: str) -> Any:
    """Import `module:attribute`. Raises SpecError."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError) as error:
        raise SpecError(f"scorer {path!r}: cannot import {module!r}: {error}") from error
    except AttributeError as error:
        raise SpecError(f"scorer {path!r}: {module!r} has no {attribute!r}") from error


def adopt(name: str, found: Any, options: dict[str, Any]) -> Scorer:
    """Make a scorer of what was loaded. Raises SpecError."""
    if _is_mlflow_scorer(found):
        scorer = found(**options) if isinstance(found, type) else found
        return MlflowScorer(name, scorer)
    if isinstance(found, type):
        found = found(**options)
        options = {}
    if not callable(found):
        raise SpecError(f"scorer {name!r} is a {type(found).__name__}, not a function or a class")
    return FunctionScorer(name, found, options)


class FunctionScorer:
    """A user's function."""

    def __init__(
        self, name: str, function: Callable[..., Any], options: dict[str, Any] | None = None
    ) -> None:
        """Raises SpecError if it wants what there is not."""
        self.name = name
        self._function = function
        self._options = options or {}
        parameters = inspect.signature(function).parameters.values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        wanted = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        required = {p.name for p in parameters if p.default is p.empty and p.name in wanted}
        unknown = sorted(required - _GIVEN.keys() - self._options.keys())
        if unknown:
            raise SpecError(
                f"scorer {name!r} wants {unknown[0]!r}; a scorer is given {', '.join(_GIVEN)}"
            )
        self._wanted = set(_GIVEN) if takes_all else wanted & _GIVEN.keys()
        self.needs_expected = "expected" in required

    def score(self, answer: Answer, expected: Any) -> float | None:
        given = {name: _GIVEN[name](answer, expected) for name in self._wanted}
        return _number(self._function(**given, **self._options))


class MlflowScorer:
    """An MLflow scorer or judge; it sees texts, and no images."""

    def __init__(self, name: str, scorer: Any) -> None:
        self.name = name
        self._scorer = scorer
        self._parameters = set(inspect.signature(scorer.__call__).parameters)
        self.needs_expected = False

    def score(self, answer: Answer, expected: Any) -> float | None:
        given: dict[str, Any] = {"inputs": {"prompt": answer.prompt}, "outputs": answer.text}
        if expected is not None:
            texts = references(expected)
            given["expectations"] = {"expected_response": texts[0] if len(texts) == 1 else texts}
        result = self._scorer(**{k: v for k, v in given.items() if k in self._parameters})
        error = getattr(result, "error", None)
        if error is not None:
            raise ValueError(getattr(error, "error_message", None) or str(error))
        return _number(getattr(result, "value", result))


_GIVEN: dict[str, Callable[[Answer, Any], Any]] = {
    "text": lambda answer, expected: answer.text,
    "expected": lambda answer, expected: expected,
    "prompt": lambda answer, expected: answer.prompt,
    "metadata": lambda answer, expected: answer.fields.get("metadata"),
    "images": lambda answer, expected: [image.uri for image in answer.images],
    "record_id": lambda answer, expected: answer.record_id,
}


def _number(value: Any) -> float | None:
    """Raises ValueError or TypeError for what is no score."""
    if value is None:
        return None
    value = getattr(value, "value", value)  # an enum, such as MLflow's CategoricalRating
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    return float(value)


def _is_mlflow_scorer(found: Any) -> bool:
    kind = found if isinstance(found, type) else type(found)
    return any(
        base.__module__.startswith("mlflow.genai") and base.__name__ == "Scorer"
        for base in kind.__mro__
    )
