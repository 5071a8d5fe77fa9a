"""Evaluations in MLflow: means as metrics, the whole as a file, a table with pictures."""

from vlmflow.evaluation.evaluate import Evaluation
from vlmflow.evaluation.results import Results
from vlmflow.evaluation.thumbnails import table_rows
from vlmflow.job.errors import SpecError
from vlmflow.job.media import MediaFetcher, make_fetcher
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener


def track_evaluation(
    evaluation: Evaluation,
    results: Results,
    opener: StoreOpener,
    tracking_uri: str | None,
    run_id: str | None,
) -> str:
    """Log to a run, by default that of the results; return its id. Raises SpecError."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    from vlmflow.tracking.mlflow_run import MlflowRun

    run_id = run_id or run_of(results)
    if run_id is None:
        raise SpecError(f"{results.name} was made without MLflow; --track RUN names a run")
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        run = MlflowRun(client, run_id, is_ours=False)
        metrics = [
            Metric(f"eval_{name}", mean, _now(), 0) for name, mean in evaluation.means.items()
        ]
        client.log_batch(run_id, metrics=metrics)
        run.log_json(evaluation.content, "evaluation.json")
        run.log_table(table_rows(evaluation.picked, fetcher_of(results, opener)), _table_name())
    except MlflowException as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SpecError(f"MLflow run {run_id!r} cannot be written to: {reason}") from error
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


def _now() -> int:
    import time

    return time.time_ns() // 1_000_000


def _table_name() -> str:
    """MLflow appends to a table that is there: each evaluation has one of its own."""
    return f"evaluation_table_{_now()}.json"
