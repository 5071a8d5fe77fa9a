"""Scores of one run, and a gate between two."""

import json
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowFailException

from tests.airflow.jobs import make_job, stand_in
from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.airflow.operators.compare import VLMCompareOperator
from vlmflow.airflow.operators.evaluate import VLMEvaluateOperator

pytestmark = pytest.mark.usefixtures("job_environment")


def run(tmp_path: Path, context, **more) -> tuple[dict, dict]:
    """A job whose manifest says what answers are expected, all of them wrong."""
    job = make_job(tmp_path, 4, **more)
    lines = [{"id": f"r{n}", "prompt": f"question {n}", "expected": "red"} for n in range(4)]
    Path(job["manifest"]).write_text("\n".join(map(json.dumps, lines)))
    return job, VLMBatchInferenceOperator(task_id="infer", **job).execute(context)


@pytest.fixture
def branches(monkeypatch) -> list[list[str]]:
    """The branches that were followed."""
    followed: list[list[str]] = []
    monkeypatch.setattr(
        VLMCompareOperator, "do_branch", lambda self, context, branch: followed.append(branch)
    )
    return followed


# `make test` scores and compares in a real Airflow too (tests/airflow/e2e/test_main_dag.py).
@pytest.mark.slow
def test_a_run_is_scored_and_compared(tmp_path, context, branches):
    job, summary = run(tmp_path, context)
    python = job["python"]
    scored = VLMEvaluateOperator(
        task_id="score", results=summary, scorers="exact_match", python=python
    ).execute(context)
    assert scored["scores"]["exact_match"]["mean"] == 0.0
    assert scored["scores"]["exact_match"]["scored"] == 4
    assert scored["counts"]["records"] == 4
    assert json.loads(Path(scored["evaluation"]).read_text())["scores"].keys() == {"exact_match"}

    operator = VLMCompareOperator(
        task_id="gate", baseline=summary, candidate=summary["job"], gate="accuracy >= 0.5",
        python=python, pass_task_ids="publish", fail_task_ids=["alert"],
    )  # fmt: skip
    assert operator.execute(context) == ["alert"] == branches[0]
    comparison = context["ti"].pushed["comparison"]
    assert (comparison["passed"], comparison["gate"]) == (False, "accuracy >= 0.5")
    assert len(json.dumps(comparison)) < 4096


def test_a_gate_that_is_passed_is_the_other_branch(tmp_path, context, branches):
    gate = {"gate": "accuracy >= 0", "passed": True, "clauses": []}
    content = json.dumps({"gate": gate, "scores": {}})
    operator = compare(tmp_path, python=stand_in(tmp_path, f"echo '{content}'"))
    assert operator.execute(context) == ["p"] == branches[0]
    assert context["ti"].pushed["comparison"]["passed"]


def compare(tmp_path, **more) -> VLMCompareOperator:
    values = {"baseline": "a", "candidate": "b", "gate": "accuracy >= 0", "pass_task_ids": "p"}
    return VLMCompareOperator(task_id="gate", **values | more)


def test_a_gate_that_is_none_fails_for_good_and_follows_nothing(tmp_path, context, branches):
    python = make_job(tmp_path)["python"]
    with pytest.raises(AirflowFailException, match="exit code 2"):
        compare(tmp_path, gate="accuracy =>", python=python).execute(context)
    assert branches == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'vlmflow: no answer' >&2; exit 3", "no answer"),
        ('echo \'{"gate": {"passed": true}}\'; exit 3', "exit code 3, but the gate says True"),
        ("exit 0", "it said nothing"),
    ],
)
def test_a_code_without_a_comparison_that_says_so_is_no_branch(
    tmp_path, context, branches, script, message
):
    with pytest.raises(AirflowFailException, match=message):
        compare(tmp_path, python=stand_in(tmp_path, script)).execute(context)
    assert branches == []


def test_options_are_those_of_the_command_line(tmp_path, context, monkeypatch):
    asked: list[list[str]] = []
    monkeypatch.setattr(
        VLMEvaluateOperator,
        "run_command",
        lambda self, context, arguments, **more: asked.append(arguments),
    )
    operator = VLMEvaluateOperator(
        task_id="score", results="runs:/1", manifest="m", output="s3://b/e", scorers="anls,judge",
        by=["metadata.task", "metadata.split"], expected_field="answer", failed="leave-out",
        endpoint_url="http://s3:9000", judge_model="openai:/gpt", judge_prompt="p.txt",
        judge_url="http://judge", track=True,
    )  # fmt: skip
    with pytest.raises(AttributeError):  # nothing was run
        operator.execute(context)
    text = " ".join(asked[0])
    assert text == (
        "evaluate --results runs:/1 --json --scorers anls,judge --expected answer "
        "--failed leave-out --endpoint-url http://s3:9000 --by metadata.task --by metadata.split "
        "--track --manifest m --output s3://b/e --judge-model openai:/gpt --judge-prompt p.txt "
        "--judge-url http://judge"
    )
    import argparse

    from vlmflow.cli import evaluate

    parser = argparse.ArgumentParser()
    evaluate.add_parser(parser.add_subparsers())
    assert parser.parse_args(asked[0]).by == ["metadata.task", "metadata.split"]


def test_a_run_that_is_none_is_named(context):
    with pytest.raises(AirflowFailException, match="is no run"):
        VLMEvaluateOperator(task_id="score", results={"counts": {}}).execute(context)


def test_what_a_template_made_nothing_of_is_no_option():
    operator = VLMEvaluateOperator(
        task_id="score", results="r", scorers="None", expected_field="", by="None", track="False",
        endpoint_url="None", mlflow_uri="None",
    )  # fmt: skip
    assert operator.scoring_arguments() == ["--json"]
    for track, option in (("True", ["--track"]), ("f00d", ["--track", "f00d"])):
        assert VLMEvaluateOperator(
            task_id="score", results="r", track=track, by='["a", "b"]'
        ).scoring_arguments() == ["--json", "--by", "a", "--by", "b", *option]
    with pytest.raises(AirflowFailException, match="'None' is no run"):
        VLMEvaluateOperator(task_id="score", results="None").execute({})


def test_a_gate_of_many_clauses_stays_below_4_kb(tmp_path, context, branches):
    clauses = [{"clause": f"metric_{n} >= 0.5", "passed": True, "why": "x" * 80} for n in range(60)]
    gate = {"gate": "many", "passed": True, "clauses": clauses}
    (tmp_path / "said").write_text(json.dumps({"gate": gate, "scores": {"s": "x" * 5000}}))
    compare(tmp_path, python=stand_in(tmp_path, f"cat {tmp_path}/said")).execute(context)
    pushed = context["ti"].pushed["comparison"]
    assert len(json.dumps(pushed)) < 4096
    assert pushed["passed"] is True
