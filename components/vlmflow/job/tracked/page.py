"""The run page of a job that came to its end, as a series of calls on its MLflow run.

Each may be repeated: it leaves what it left before. All of it is made from what is in the job's
output, so a page that could not be logged is logged later just the same.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vlmflow.job.evaluator import Evaluated
from vlmflow.job.samples import Sample
from vlmflow.job.timeline import JobTimeline
from vlmflow.job.tracked.aggregate import aggregate_points
from vlmflow.job.tracked.collected import CollectedLines
from vlmflow.job.tracked.description import TrackedJob, dataset_of, engine_params
from vlmflow.job.tracked.figures import draw_figures
from vlmflow.job.tracked.model_names import engine_key, model_params, registered_tags, shown_name
from vlmflow.job.tracked.orchestrator import orchestrator_tags
from vlmflow.job.tracked.pointer import results_pointer
from vlmflow.job.tracked.summary import describe, final_metrics
from vlmflow.job.tracked.tables import failure_rows, sample_rows
from vlmflow.job.tracked.traces import TracedRecord, log_traces
from vlmflow.tracking.metric_point import MAX_BATCH, MetricPoint
from vlmflow.tracking.table import log_table, show_tables, write_table

if TYPE_CHECKING:
    from vlmflow.tracking.mlflow_run import MlflowRun

Call = Callable[["MlflowRun"], None]


@dataclass(frozen=True, slots=True)
class PageContent:
    """What a finished job is shown by."""

    report: dict[str, Any]
    html: str  # report.html
    collected: CollectedLines
    samples: list[Sample]
    traced: list[TracedRecord]
    timeline: JobTimeline
    evaluated: Evaluated | None = None


class RunPage:
    """A context: files that are being sent are gone when it is left."""

    def __init__(self, job: TrackedJob, content: PageContent) -> None:
        self._job = job
        self._content = content
        self._model_id: str | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="vlmflow-", ignore_cleanup_errors=True)

    def __enter__(self) -> "RunPage":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def steps(self) -> Iterator[Call]:
        """Yield the calls: what is wanted most first, for a server that is slow."""
        yield self._log_metrics
        yield self._log_words
        yield self._log_tables
        yield self._log_evaluation
        yield self._log_results
        yield self._log_figures
        yield self._log_traces
        yield self._end_children

    def _log_words(self, run: "MlflowRun") -> None:
        report = self._content.report
        run.set_tags({"mlflow.note.content": describe(report, orchestrator_tags())})
        run.set_tags(registered_tags(report))
        run.log_json(report, "report.json")
        run.log_text(self._content.html, "report.html")
        run.log_json(report["job"]["spec"], "config.json")
        run.log_json(report["failures"], "failures_by_class.json")

    def _log_metrics(self, run: "MlflowRun") -> None:
        from vlmflow.tracking.logged_model import find_or_create_model

        report = self._content.report
        run.log_params(engine_params(report["engine"]))
        registered = report["job"].get("registered_model")
        model_id = self._model_id = find_or_create_model(
            run.client,
            run.experiment_id,
            run.run_id,
            _model_of(self._job, report),
            registered_id=registered["model_id"] if registered else None,
        )
        run.link_model(model_id)
        num_records = self._job.plan.num_records
        step = num_records * (report["generation"] + 1)
        now = time.time_ns() // 1_000_000
        points = [MetricPoint(k, v, step, now) for k, v in final_metrics(report).items()]
        run.log_model_metrics(points, model_id=model_id, dataset=dataset_of(self._job).key)
        if len(self._job.plan.shards) > 1:
            points = aggregate_points(self._job.store, report, num_records)
            for first in range(0, len(points), MAX_BATCH):
                run.send_points(points[first : first + MAX_BATCH])

    def _log_tables(self, run: "MlflowRun") -> None:
        folder = self._place("tables")
        tables = {
            "samples": sample_rows(self._content.samples),
            "failures": failure_rows(self._content.collected.failures()),
        }
        shown = [name for name, rows in tables.items() if rows]
        for name in shown:
            write_table(folder, name, tables[name])
        if shown:
            run.log_files(folder)
            show_tables(run, shown)

    def _log_evaluation(self, run: "MlflowRun") -> None:
        evaluated = self._content.evaluated
        if evaluated is None or evaluated.content is None:
            return
        run.log_json(evaluated.content, "evaluation.json")
        log_table(run, "evaluation_table", evaluated.rows)

    def _log_results(self, run: "MlflowRun") -> None:
        path = self._content.collected.results_path
        if path is not None:
            run.log_file(path)
        else:
            run.log_json(
                results_pointer(self._job.store, self._content.report), "results_pointer.json"
            )

    def _log_figures(self, run: "MlflowRun") -> None:
        folder = self._place("plots")
        draw_figures(folder, self._content.timeline, self._content.report)
        run.log_files(folder, "plots")

    def _log_traces(self, run: "MlflowRun") -> None:
        log_traces(run, self._content.traced, self._model_id)

    def _end_children(self, run: "MlflowRun") -> None:
        from vlmflow.tracking.lifecycle import end_children

        if len(self._job.plan.shards) > 1:
            end_children(run, "FINISHED")

    def _place(self, name: str) -> Path:
        """A folder for files that are about to be sent; the same one if the call is repeated."""
        folder = Path(self._folder.name) / name
        folder.mkdir(exist_ok=True)
        return folder


def _model_of(job: TrackedJob, report: dict[str, Any]) -> Any:
    from vlmflow.tracking.logged_model import ModelDescription

    engine = report["engine"]
    shown = {"device", "device_name", "attention_backend", "torch_version", "session_len"}
    params = {name: str(engine[name]) for name in sorted(shown & engine.keys())}
    return ModelDescription(
        digest=job.model_digest,
        engine_key=engine_key(engine),
        name=shown_name(job.spec.model, job.model_digest),
        params=model_params(job.spec.model, job.model_digest, engine) | params,
    )
