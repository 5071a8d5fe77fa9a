"""Our scorers in MLflow's own evaluation."""

import mlflow
import pytest

from vlmflow.evaluation.for_mlflow import mlflow_scorer
from vlmflow.job.errors import SpecError

# MLflow's own, about its threads, its database and pandas.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_scorer_scores_as_it_does_here():
    made = mlflow_scorer("near=anls(threshold=0.9)")
    assert made.name == "near"
    assert made(outputs="abcd", expectations={"expected_response": ["abXY", "zzzz"]}) == 0.5
    assert made(outputs="abcd", expectations={}) is None
    with pytest.raises(SpecError, match="names 2 scorers"):
        mlflow_scorer("anls,chrf")


@pytest.mark.slow
def test_evaluation_of_mlflow_takes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    rows = [
        {"inputs": {"prompt": "p"}, "outputs": text, "expectations": {"expected_response": "cat"}}
        for text in ("cat", "dog", "a cat", "cat")
    ]
    try:
        result = mlflow.genai.evaluate(
            data=rows, scorers=[mlflow_scorer("exact_match"), mlflow_scorer("token_f1")]
        )
    finally:
        mlflow.set_tracking_uri(before)
    assert result.metrics["exact_match/mean"] == 0.5
    assert result.metrics["token_f1/mean"] == 0.75
