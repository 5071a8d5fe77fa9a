"""Our scorers for `mlflow.genai.evaluate`, for those who evaluate a few rows there.

    mlflow.genai.evaluate(data=rows, scorers=[mlflow_scorer("anls"), mlflow_scorer("vqa_accuracy")])

Rows hold `outputs`, the answer's text, and `expectations`: {"expected_response": ...}.
"""

from typing import Any

from vlmflow.evaluation.answer import EXPECTED, Answer
from vlmflow.evaluation.scorers import make_scorers
from vlmflow.job.errors import SpecError


def mlflow_scorer(text: str) -> Any:
    """Make MLflow's scorer of one of ours, named as in `--scorers`. Raises SpecError."""
    from mlflow.genai.scorers import scorer

    made = make_scorers(text)
    if len(made) != 1:
        raise SpecError(f"{text!r} names {len(made)} scorers; make one at a time")
    [ours] = made

    def score(outputs: Any, expectations: dict[str, Any] | None = None) -> float | None:
        expected = (expectations or {}).get("expected_response")
        if ours.needs_expected and expected is None:
            return None
        return ours.score(Answer(None, 0, str(outputs), {EXPECTED: expected}), expected)

    return scorer(score, name=ours.name)
