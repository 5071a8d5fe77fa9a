"""What a job wants of an evaluation. Who makes one stands above the job, and hands it in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlmflow.job.errors import SpecError
from vlmflow.job.loop import StopSignal
from vlmflow.job.media import MediaFetcher
from vlmflow.job.progress import Display
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store, StoreOpener


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation, as a report and a tracking server show it."""

    summary: dict[str, Any]  # `evaluation` in report.json
    content: dict[str, Any] | None = None  # evaluation.json; None if there was an error
    rows: list[dict[str, Any]] = field(default_factory=list)  # a table; bytes are pictures


class Evaluator(Protocol):
    def __call__(self, store: Store, report: dict[str, Any], fetcher: MediaFetcher) -> Evaluated:
        """Evaluate the results of a job's output, whose report is about to be written.

        What is wrong with the evaluation is told in its summary: the results are there all the
        same. Raises InterruptedJobError and StoreError.
        """


# None: the spec asks for no evaluation. Raises SpecError for one that would not work.
MakeEvaluator = Callable[[JobSpec, StoreOpener, Display, StopSignal], Evaluator | None]


def evaluates_nothing(
    spec: JobSpec, opener: StoreOpener, display: Display, stop: StopSignal
) -> Evaluator | None:
    """For callers that hand no evaluator in. Raises SpecError if the spec asks for one."""
    if spec.evaluation.scorers:
        raise SpecError(
            "evaluation.scorers: this caller evaluates nothing; give JobRun the make_evaluator of "
            "vlmflow.evaluation.phase"
        )
    return None


def evaluation_metrics(report: dict[str, Any]) -> dict[str, float | None]:
    """The means of a report's evaluation, as metrics of a run."""
    evaluation = report.get("evaluation") or {}
    return {f"eval_{name}": score["mean"] for name, score in evaluation.get("scores", {}).items()}
