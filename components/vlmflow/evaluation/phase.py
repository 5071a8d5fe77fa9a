"""The evaluation as a phase of `vlmflow run`: after the results are written, before the report."""

from typing import Any

from vlmflow.evaluation.request import EvaluationRequest
from vlmflow.evaluation.results import open_output
from vlmflow.evaluation.thumbnails import table_rows
from vlmflow.job import layout
from vlmflow.job.errors import EXIT_RESUMABLE
from vlmflow.job.evaluator import Evaluated, Evaluator
from vlmflow.job.loop import StopSignal
from vlmflow.job.media import MediaFetcher
from vlmflow.job.progress import Display
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store, StoreOpener
from vlmflow_engine.errors import VlmflowError


def make_evaluator(
    spec: JobSpec, opener: StoreOpener, display: Display, stop: StopSignal
) -> Evaluator | None:
    """The evaluator that a spec asks for; None if it asks for none. Raises SpecError."""
    if not spec.evaluation.scorers:
        return None
    request = EvaluationRequest.of(spec.evaluation)
    request.check()

    def evaluate(store: Store, report: dict[str, Any], fetcher: MediaFetcher) -> Evaluated:
        display.say(f"evaluating: {request.scorers}")
        results = open_output(store)
        results.report = report
        try:
            evaluation = request.carry_out(
                results, opener, output=store, display=display, stop=stop
            )
        except VlmflowError as error:
            if getattr(error, "exit_code", None) == EXIT_RESUMABLE:
                raise
            display.say(f"the evaluation failed: {error}")
            return Evaluated({"error": str(error)})
        content = evaluation.content
        return Evaluated(
            summary_of(content, store), content, table_rows(evaluation.picked, fetcher)
        )

    return evaluate


def summary_of(content: dict[str, Any], store: Store) -> dict[str, Any]:
    """What report.json holds of an evaluation."""
    return {
        "scorers": list(content["scores"]),
        "failed_count_as": content["failed_count_as"],
        "scores": {
            name: {key: score[key] for key in ("mean", "low", "high", "scored")}
            for name, score in content["scores"].items()
        },
        "evaluation": f"{store.uri}/{layout.EVALUATION}",
        "table": f"{store.uri}/{layout.EVALUATION_TABLE}",
    }
