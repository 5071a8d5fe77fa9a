"""What an evaluation and a comparison leave as outputs of a step."""

from typing import Any

from vlmflow.kfp_step.executor_input import Artifact, OutputNames, StepOutputs
from vlmflow.kfp_step.markdown import number, page, table

EVALUATION_NAMES = OutputNames(
    frozenset({"accuracy", "scored", "evaluation_uri"}), frozenset({"metrics", "summary"})
)
COMPARISON_NAMES = OutputNames(
    frozenset({"is_passed", "gate_result"}), frozenset({"metrics", "summary", "report"})
)


def evaluation_outputs(content: dict[str, Any], evaluation_uri: str) -> StepOutputs:
    """Of evaluation.json; `accuracy` is the first scorer, as in a gate."""
    scores = content["scores"]
    first = next(iter(scores.values()))
    metrics = {name: score["mean"] for name, score in scores.items() if score["mean"] is not None}
    rows = [
        (name, number(s["mean"]), f"{number(s['low'])} to {number(s['high'])}", s["scored"])
        for name, s in scores.items()
    ]
    level = f"{content['bootstrap']['level']:.0%} interval"
    told = table(("scorer", "mean", level, "scored"), rows)
    return StepOutputs(
        {
            "accuracy": first["mean"] if first["mean"] is not None else 0.0,
            "scored": first["scored"],
            "evaluation_uri": evaluation_uri,
        },
        {
            "metrics": Artifact({**metrics, "records": content["counts"]["records"]}),
            "summary": Artifact(content=page(f"Scores of {content['results']}", told)),
        },
    )


def comparison_outputs(content: dict[str, Any], comparison_page: str) -> StepOutputs:
    """Of comparison.json. Without a gate nothing is asked, and that is passed."""
    gate = content["gate"]
    is_passed = gate is None or bool(gate["passed"])
    scores = {name: score for name, score in content["scores"].items() if score is not None}
    metrics = {"is_passed": float(is_passed), "records": float(content["records"]["in_both"])}
    for name, score in scores.items():
        metrics |= {f"{name}_a": score["mean_a"], f"{name}_b": score["mean_b"]}
    rows = [
        (name, *(number(score[key]) for key in ("mean_a", "mean_b", "difference", "p_value")))
        for name, score in scores.items()
    ]
    clauses = [] if gate is None else gate["clauses"]
    held = [
        (clause["clause"], "holds" if clause["holds"] else "fails", clause["a"], clause["b"])
        for clause in clauses
    ]
    verdict = "no gate" if gate is None else "passed" if is_passed else "not passed"
    summary = page(
        f"Gate: {verdict}",
        f"A is {content['a']['name']}, B is {content['b']['name']}.",
        table(("clause", "", "A", "B"), held) if held else "",
        table(("scorer", "A", "B", "B - A", "p"), rows),
    )
    return StepOutputs(
        {"is_passed": is_passed, "gate_result": _sentence(gate)},
        {
            "metrics": Artifact({k: v for k, v in metrics.items() if v is not None}),
            "summary": Artifact(content=summary),
            "report": Artifact({"display_name": "comparison"}, comparison_page.encode()),
        },
    )


def _sentence(gate: dict[str, Any] | None) -> str:
    """Which clauses failed, for an alert."""
    if gate is None:
        return "there is no gate"
    failed = [
        f"{clause['clause']} (A {clause['a']}, B {clause['b']})"
        for clause in gate["clauses"]
        if not clause["holds"]
    ]
    if gate["passed"]:
        return f"{gate['gate']}: passed"
    return f"{gate['gate']}: not passed, for {'; '.join(failed)}"
