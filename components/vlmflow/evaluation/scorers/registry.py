"""From a name to its scorer."""

from collections.abc import Callable
from typing import Any

from vlmflow.evaluation.scorers.anls import Anls
from vlmflow.evaluation.scorers.base import ExpectedScorer, ReferenceScorer, Scorer
from vlmflow.evaluation.scorers.boxes import BoxesF1, BoxesIou
from vlmflow.evaluation.scorers.choice import multiple_choice
from vlmflow.evaluation.scorers.custom import (
    adopt,
    entry_point_names,
    load_entry_point,
    load_object,
)
from vlmflow.evaluation.scorers.json_fields import JsonFields, JsonValid
from vlmflow.evaluation.scorers.match import exact_match, normalized_match
from vlmflow.evaluation.scorers.number import RelaxedAccuracy
from vlmflow.evaluation.scorers.overlap import ChrF, RougeL
from vlmflow.evaluation.scorers.parse import Wording, parse_scorers
from vlmflow.evaluation.scorers.token_f1 import token_f1
from vlmflow.evaluation.scorers.vqa import vqa_accuracy
from vlmflow.job.errors import SpecError

JUDGE = "judge"  # answers are judged by a model: vlmflow.evaluation.judge makes this one
MLFLOW_PREFIX = "mlflow:"

_Factory = Callable[..., Scorer]

_BUILT_IN: dict[str, _Factory] = {
    "exact_match": lambda name: ReferenceScorer(name, exact_match),
    "normalized_match": lambda name: ReferenceScorer(name, normalized_match),
    "vqa_accuracy": lambda name: ExpectedScorer(name, vqa_accuracy),
    "anls": lambda name, threshold=0.5: ReferenceScorer(name, Anls(threshold)),
    "token_f1": lambda name: ReferenceScorer(name, token_f1),
    "rouge_l": lambda name: ReferenceScorer(name, RougeL()),
    "chrf": lambda name: ReferenceScorer(name, ChrF()),
    "multiple_choice": lambda name: ReferenceScorer(name, multiple_choice),
    "relaxed_accuracy": lambda name, tolerance=0.05: ReferenceScorer(
        name, RelaxedAccuracy(tolerance)
    ),
    "json_fields": lambda name, schema=None: JsonFields(name, schema),
    "json_valid": lambda name, schema=None: JsonValid(name, schema),
    "boxes_f1": lambda name, iou=0.5: ExpectedScorer(name, BoxesF1(iou)),
    "boxes_iou": lambda name: ExpectedScorer(name, BoxesIou()),
}


def scorer_names() -> list[str]:
    """All that can be named: ours, then those of other distributions."""
    return [*_BUILT_IN, *entry_point_names()]


def make_scorers(text: str, *, judge: Callable[[Wording], Scorer] | None = None) -> list[Scorer]:
    """Make the scorers that a text names. Raises SpecError.

    `judge` makes the one called `judge`; None where there is no model to judge with.
    """
    return [_make(wording, judge) for wording in parse_scorers(text)]


def _make(wording: Wording, judge: Callable[[Wording], Scorer] | None) -> Scorer:
    name, kind, options = wording.name, wording.kind, wording.options
    if kind == JUDGE:
        if judge is None:
            raise SpecError("scorer 'judge' needs a model that judges: --judge-model")
        return judge(wording)
    try:
        if kind in _BUILT_IN:
            return _BUILT_IN[kind](name, **options)
        return adopt(name, _load(kind), options)
    except ImportError as error:
        raise SpecError(
            f"scorer {kind!r} needs the package {error.name!r}: pip install 'vlmflow[evaluation]'"
        ) from error
    except TypeError as error:
        raise SpecError(f"scorer {wording.text!r}: {error}") from error


def _load(kind: str) -> Any:
    if kind.startswith(MLFLOW_PREFIX):
        return load_object(f"mlflow.genai.scorers:{kind.removeprefix(MLFLOW_PREFIX)}")
    if ":" in kind:
        return load_object(kind)
    found = load_entry_point(kind)
    if found is None:
        raise SpecError(f"there is no scorer {kind!r}; there are {', '.join(scorer_names())}")
    return found
