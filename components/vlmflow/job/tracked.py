"""What of a job goes to MLflow, and when. Nothing here waits for a tracking server."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vlmflow import __version__
from vlmflow.job import layout
from vlmflow.job.crash_points import reached
from vlmflow.job.evaluator import Evaluated, evaluation_metrics
from vlmflow.job.plan import Plan
from vlmflow.job.samples import Sample
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import ObjectMissingError, Store
from vlmflow.job.store.locate import without_query, without_secrets_of
from vlmflow.tracking.side_thread import MetricPoint, SideThread
from vlmflow_engine.generation import GenerationConfig

if TYPE_CHECKING:
    from vlmflow.tracking.mlflow_run import MlflowRun, RunDescription

_END_SECONDS = 60.0  # given to the tracking server at the end of a job

_FINAL = ("records", "succeeded", "failed", "skipped")
_FINAL_TIMES = ("wall_seconds", "device_seconds", "device_seconds_per_1000_records")

# Of generation: what a person asks for first. The others are shown when they are set.
_SHOWN_OPTIONS = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
_DEFAULTS = asdict(GenerationConfig())


class JobTracker:
    """The job's MLflow run. With tracking off, all calls are harmless."""

    def __init__(
        self,
        spec: JobSpec,
        store: Store,
        identity: str,
        plan: Plan,
        model_digest: str,
        *,
        tell: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._store = store
        self._identity = identity
        self._plan = plan
        self._model_digest = model_digest
        self._tell = tell
        self._run: MlflowRun | None = None
        self._error: str | None = None
        self._thread = SideThread(self._send_points, self._report_error)

    def start(self) -> None:
        """Open the run, on the side."""
        if self._spec.tracking.enabled:
            self._thread.start()
            self._thread.call(self._open)

    def engine_ready(self, info: dict[str, Any]) -> None:
        """Log what the engine resolved."""
        params = {f"engine.{name}": str(value) for name, value in info.items()}
        self._with_run(lambda run: run.log_params(params))

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Log throughput; the step is the number of records done."""
        if self._spec.tracking.enabled:
            self._thread.add_points(step, metrics)

    def run_reference(self) -> dict[str, Any] | None:
        """Where the run is, for the report; None without one."""
        if not self._spec.tracking.enabled:
            return None
        self._thread.drain(_END_SECONDS)
        run = self._run
        if run is None:
            return {"error": self._error or "the tracking server did not answer in time"}
        return {
            "tracking_uri": without_query(run.tracking_uri),
            "experiment_id": run.experiment_id,
            "run_id": run.run_id,
        }

    def evaluated(self, evaluated: Evaluated) -> None:
        """Log an evaluation beside the report; its means come with the final metrics."""
        content = evaluated.content
        if content is not None:
            self._with_run(lambda run: run.log_json(content, "evaluation.json"))
            self._with_run(lambda run: run.log_table(evaluated.rows, "evaluation_table.json"))

    def finish(
        self, report: dict[str, Any], page: str, samples: list[Sample], *, status: str
    ) -> None:
        """Log the report, as JSON and as a page, and end the run, waiting a while for it."""
        if not self._spec.tracking.enabled:
            return
        self._thread.add_points(report["counts"]["records"], final_metrics(report))
        self._with_run(lambda run: run.log_json(report, "report.json"))
        self._with_run(lambda run: run.log_text(page, "report.html"))
        self._with_run(lambda run: run.log_table(_sample_rows(samples), "samples.json"))
        self._with_run(lambda run: run.set_tags({"mlflow.note.content": describe(report)}))
        self._with_run(lambda run: run.end(status))
        self._close()

    def fail(self, status: str) -> None:
        """End the run of a job that did not come to its end: FAILED or KILLED."""
        if self._spec.tracking.enabled:
            self._with_run(lambda run: run.end(status))
            self._close()

    def _with_run(self, call: "Callable[[MlflowRun], None]") -> None:
        if self._spec.tracking.enabled:
            self._thread.call(lambda: call(self._run) if self._run is not None else None)

    def _open(self) -> None:
        # Loading MLflow takes seconds; here they are nobody's.
        from vlmflow.tracking.mlflow_run import open_run

        run = open_run(self._spec.tracking.uri, self._known_run_id(), self._description())
        self._run = self._agree_on(run)

    def _known_run_id(self) -> str | None:
        try:
            run_id: str = json.loads(self._store.read(layout.TRACKING))["run_id"]
        except ObjectMissingError:
            return None
        return run_id

    def _agree_on(self, run: "MlflowRun") -> "MlflowRun":
        if run.is_ours:
            reached("tracking-run-opened")
            content = {"run_id": run.run_id, "tracking_uri": without_query(run.tracking_uri)}
            self._store.create(layout.TRACKING, layout.dump(content))
            reached("tracking-written")
        return run

    def _description(self) -> "RunDescription":
        from vlmflow.tracking.mlflow_run import RunDescription

        spec, plan = self._spec, self._plan
        model = PurePath(spec.model).name
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        dumped = spec.model_dump(mode="json")
        params = {"model": spec.model, "limit": spec.limit, "seed": spec.seed}
        params |= {
            f"generation.{name}": value
            for name, value in dumped["generation"].items()
            if name in _SHOWN_OPTIONS or value != _DEFAULTS[name]
        }
        return RunDescription(
            name=f"{spec.name}/{model}/{plan.sha256[:8]}/{now}",
            experiment=spec.tracking.experiment,
            tags={
                "job.name": spec.name,
                "job.identity": self._identity,
                "manifest.uri": spec.manifest,
                "manifest.sha256": plan.sha256,
                "model.path": spec.model,
                "model.digest": self._model_digest,
                "output.uri": self._store.uri,
                "vlmflow.version": __version__,
            },
            params={name: str(value) for name, value in params.items()},
            dataset_name=spec.name,
            dataset_uri=spec.manifest,
            dataset_digest=plan.sha256,
            dataset_profile={"num_records": plan.num_records, "num_bytes": plan.num_bytes},
        )

    def _send_points(self, points: list[MetricPoint]) -> None:
        if self._run is not None:
            self._run.send_points(points)

    def _report_error(self, error: Exception) -> None:
        """Tell the first failure; a server that is down would repeat it every second."""
        if self._error is None:
            first_line = str(error).splitlines()[0] if str(error) else ""
            for uri in (self._spec.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI")):
                first_line = without_secrets_of(uri or "", first_line)
            self._error = f"{type(error).__name__}: {first_line}"[:300]
            self._tell(f"MLflow: {self._error}; the job goes on without it")

    def _close(self) -> None:
        if not self._thread.close(_END_SECONDS):
            self._tell(f"MLflow did not answer within {_END_SECONDS:.0f} s; its run is incomplete")


def final_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The report's numbers as metrics; what is not known is left out."""
    counts = report["counts"]
    values: dict[str, float | None] = {f"records_{name}": counts[name] for name in _FINAL[1:]}
    values |= {"records_total": counts["records"], "images_total": report["images"]}
    values |= {"error_rate": counts["failed"] / counts["records"]}
    values |= {f"{name}_tokens_total": count for name, count in report["tokens"].items()}
    values |= {f"final_{name}": value for name, value in report["throughput"].items()}
    values |= {f"latency_{name}_seconds": v for name, v in report["latency_seconds"].items()}
    values["exact_match"] = report["accuracy"]["exact_match"]
    values |= evaluation_metrics(report)
    time, cost = report["time"], report["cost"]
    values |= {name: time[name] for name in _FINAL_TIMES}
    if cost is not None:
        values |= {"cost_total": cost["total"]}
        values |= {"cost_per_1000_records": cost["per_1000_records"]}
    return {name: float(value) for name, value in values.items() if value is not None}


def describe(report: dict[str, Any]) -> str:
    """The run's description, in Markdown."""
    counts, rates = report["counts"], report["throughput"]
    lines = [
        f"**{counts['succeeded']} of {counts['records']}** records succeeded, "
        f"{counts['failed']} failed, {counts['skipped']} were skipped.",
        "",
        f"- {rates['images_per_second'] or 0:.1f} images/s, "
        f"{rates['output_tokens_per_second'] or 0:.1f} output tokens/s",
        f"- manifest `{report['manifest']['uri']}`",
        f"- results `{report['results']['results']}`",
        f"- report `{report['results']['report_html']}`",
    ]
    accuracy = report["accuracy"]
    if accuracy["exact_match"] is not None:
        lines.insert(
            2,
            f"- exact match {accuracy['exact_match']:.1%} of {accuracy['expected']} answers",
        )
    for name, failure in report["failures"].items():
        lines.append(f"- failed: `{name}` x {failure['count']}")
    return "\n".join(lines)


def _sample_rows(samples: list[Sample]) -> list[dict[str, Any]]:
    # A column holds pictures or it does not: samples without one stay out where others have one.
    with_picture = [sample for sample in samples if sample.thumbnail is not None]
    rows = []
    for sample in with_picture or samples:
        line = sample.line
        row: dict[str, Any] = {"id": line["id"]}
        if with_picture:
            row["image"] = sample.thumbnail
        row |= {"text": line["text"], "expected": json.dumps(line.get("expected"))}
        row |= {"finish_reason": line["finish_reason"], "seconds": line["seconds"]}
        rows.append(row)
    return rows
