"""Evaluations and comparisons in MLflow: metrics, the whole as a file, tables with pictures."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlmflow.evaluation.compare import Comparison
from vlmflow.evaluation.evaluate import Evaluation
from vlmflow.evaluation.results import Results
from vlmflow.evaluation.thumbnails import table_rows, with_pictures
from vlmflow.job.errors import SpecError
from vlmflow.job.media import MediaFetcher, make_fetcher
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener
from vlmflow.tracking.metric_point import MetricPoint
from vlmflow.tracking.reason import reason_of
from vlmflow.tracking.table import log_table

if TYPE_CHECKING:
    from vlmflow.tracking.mlflow_run import MlflowRun

_MAX_TEXT = 2000  # characters of a cell


def track_evaluation(
    evaluation: Evaluation,
    results: Results,
    opener: StoreOpener,
    tracking_uri: str | None,
    run_id: str | None,
) -> str:
    """Log to a run, by default that of the results; return its id. Raises SpecError."""
    run_id = run_id or run_of(results)
    if run_id is None:
        raise SpecError(f"{results.name} was made without MLflow; --track RUN names a run")
    with _writing(tracking_uri, run_id) as run:
        run.send_points(_points({f"eval_{n}": mean for n, mean in evaluation.means.items()}))
        run.log_json(evaluation.content, "evaluation.json")
        rows = table_rows(evaluation.picked, fetcher_of(results, opener))
        log_table(run, "evaluation_table", rows)
    return run_id


def track_comparison(
    comparison: Comparison,
    page: str,
    pictures: Sequence[bytes | None],
    *,
    tracking_uri: str | None,
    run_id: str | None,
    experiment: str,
) -> str:
    """Log to a run, by default a new one; return its id. Raises SpecError."""
    content = comparison.content
    is_new = run_id is None
    run_id = run_id or _new_run(content, tracking_uri, experiment)
    with _writing(tracking_uri, run_id) as run:
        metrics = {"compare_records": float(content["records"]["in_both"])}
        for name, score in content["scores"].items():
            if score is not None:
                metrics[f"compare_{name}_difference"] = score["difference"]
                metrics[f"compare_{name}_p_value"] = score["p_value"]
        metrics |= {
            f"compare_{name}_ratio": values["ratio"]
            for name, values in content["performance"].items()
            if values["ratio"] is not None
        }
        if content["gate"] is not None:
            metrics["compare_gate_passed"] = float(content["gate"]["passed"])
        run.send_points(_points(metrics))
        run.log_json(content, "comparison.json")
        run.log_text(page, "comparison.html")
        rows = with_pictures([_cells(item.row) for item in comparison.changed], pictures)
        log_table(run, "comparison_table", rows)
        if is_new:
            run.end("FINISHED")
    return run_id


def run_of(results: Results) -> str | None:
    """The MLflow run of a job's results."""
    if results.run_id is not None:
        return results.run_id
    mlflow = None if results.report is None else results.report["mlflow"]
    return None if mlflow is None else mlflow.get("run_id")


def fetcher_of(results: Results, opener: StoreOpener) -> MediaFetcher | None:
    """Fetches images as the job did; None if nobody knows how that was."""
    if results.report is None:
        return None
    spec = JobSpec.parse(results.report["job"]["spec"])
    return make_fetcher(spec, opener, lambda message: None)


def _new_run(content: dict[str, Any], tracking_uri: str | None, experiment: str) -> str:
    from vlmflow.tracking.experiment import find_experiment
    from vlmflow.tracking.lifecycle import connect

    client = connect(tracking_uri)
    names = [content[run]["name"].rstrip("/").rpartition("/")[2] for run in ("a", "b")]
    created = client.create_run(
        find_experiment(client, experiment),
        run_name=f"compare {names[0]} with {names[1]}"[:250],
        tags={f"compare.{run}": content[run]["name"] for run in ("a", "b")},
    )
    run_id: str = created.info.run_id
    return run_id


@contextmanager
def _writing(tracking_uri: str | None, run_id: str) -> "Iterator[MlflowRun]":
    from mlflow.exceptions import MlflowException

    from vlmflow.tracking.lifecycle import connect
    from vlmflow.tracking.mlflow_run import MlflowRun

    try:
        yield MlflowRun(connect(tracking_uri), run_id, is_ours=True)
    except MlflowException as error:
        raise SpecError(
            f"MLflow run {run_id!r} cannot be written to: {reason_of(error)}"
        ) from error


def _points(metrics: dict[str, float]) -> list[MetricPoint]:
    return [MetricPoint(name, value, 0, _now()) for name, value in metrics.items()]


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a comparison as cells of a table."""
    texts = {name: row[name] for name in ("prompt", "a", "b")}
    expected = row["expected"]
    if expected is not None and not isinstance(expected, str):
        expected = json.dumps(expected, ensure_ascii=False)
    cells = {"id": row["id"], "outcome": row["outcome"], **texts, "expected": expected}
    cells = {k: v[:_MAX_TEXT] if isinstance(v, str) else v for k, v in cells.items()}
    for run in ("a", "b"):
        cells |= {f"{name}_{run}": value for name, value in row[f"scores_{run}"].items()}
    return cells


def _now() -> int:
    return time.time_ns() // 1_000_000
