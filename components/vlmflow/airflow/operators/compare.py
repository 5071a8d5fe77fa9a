"""`VLMCompareOperator`: two runs side by side, and a gate that says which way the DAG goes."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BranchMixIn
from airflow.sdk.exceptions import AirflowFailException

from vlmflow.airflow.operators.evaluate import ScoringOperator, run_name
from vlmflow.airflow.operators.outcome import below_limit, check_exit
from vlmflow.airflow.process import Ended
from vlmflow.job.errors import EXIT_COMPLETE, EXIT_FAILURES
from vlmflow.job.given import given

if TYPE_CHECKING:
    from airflow.sdk import Context

COMPARISON_KEY = "comparison"


class VLMCompareOperator(ScoringOperator, BranchMixIn):
    """Compare two runs record by record, and follow one branch if the gate is passed, else another.

    :param baseline: the old run: a URI, an MLflow run (runs:/ID), or an operator's summary.
    :param candidate: the new run.
    :param gate: such as "accuracy >= -0.01 and images_per_second >= 0.95x"; docs/evaluation.md has
        its grammar.
    :param pass_task_ids: tasks (or task groups) directly downstream that run if it is passed.
    :param fail_task_ids: those that run if it is not. Neither branch is a failure of this task.
    :param html: a file on the worker's machine, for the page that people read.

    A run or a gate that is not right fails the task for good. The comparison's summary is pushed as
    XCom `comparison`: `passed`, `clauses`, `scores`. See `ScoringOperator` and `CommandOperator`
    for the other arguments.
    """

    inherits_from_skipmixin = True
    template_fields: Collection[str] = (
        *ScoringOperator.template_fields,
        "baseline",
        "candidate",
        "gate",
        "pass_task_ids",
        "fail_task_ids",
        "html",
        "experiment",
    )

    def __init__(
        self,
        *,
        baseline: str | Mapping[str, Any],
        candidate: str | Mapping[str, Any],
        gate: str,
        pass_task_ids: str | Sequence[str],
        fail_task_ids: str | Sequence[str] = (),
        html: str | None = None,
        experiment: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.baseline = baseline
        self.candidate = candidate
        self.gate = gate
        self.pass_task_ids = pass_task_ids
        self.fail_task_ids = fail_task_ids
        self.html = html
        self.experiment = experiment

    def execute(self, context: "Context") -> list[str]:
        """Compare, and return the branch."""
        runs = [run_name(self.baseline), run_name(self.candidate)]
        arguments = ["compare", *runs, "--gate", self.gate, *self.scoring_arguments()]
        for option, value in (("--html", self.html), ("--experiment", self.experiment)):
            if given(value) is not None:
                arguments += [option, str(value)]
        ended = self.run_command(context, arguments, with_output=True)
        gate, summary = _judged(ended)
        context["ti"].xcom_push(key=COMPARISON_KEY, value=summary)
        for clause in gate["clauses"]:
            self.log.info("%s", json.dumps(clause))
        self.log.info("gate %s: %s", "passed" if gate["passed"] else "not passed", gate["gate"])
        branch = self.pass_task_ids if gate["passed"] else self.fail_task_ids
        branch = [branch] if isinstance(branch, str) else list(branch)
        self.do_branch(context, branch)
        return branch


def _judged(ended: Ended) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gate, and a summary of the comparison."""
    if ended.code != EXIT_FAILURES:  # which says of a comparison that the gate is not passed
        check_exit(ended, None)
    try:
        content = json.loads(ended.output)
        gate = content["gate"]
        is_told = gate["passed"] == (ended.code == EXIT_COMPLETE)
    except (ValueError, KeyError, TypeError) as error:
        raise AirflowFailException(f"{ended.reason} (exit code {ended.code})") from error
    if not is_told:
        raise AirflowFailException(f"exit code {ended.code}, but the gate says {gate['passed']}")
    summary = {
        "passed": gate["passed"],
        "gate": gate["gate"],
        "clauses": gate["clauses"],
        "scores": content["scores"],
    }
    return gate, below_limit(summary)
