"""`evaluate`: scores of a job's answers."""

from kfp import dsl

from vlmflow.kubeflow.image import default_image


@dsl.container_component
def evaluate(
    results: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    accuracy: dsl.OutputPath(float),
    scored: dsl.OutputPath(int),
    evaluation_uri: dsl.OutputPath(str),
    scorers: str = "exact_match",
    by: str = "",
    expected_field: str = "expected",
    endpoint_url: str = "",
    mlflow_uri: str = "",
    mlflow_run_id: str = "",
    manifest_sha256: str = "",
) -> dsl.ContainerSpec:
    """Score every answer, and write evaluation.json and evaluation.parquet beside the results.

    Args:
        results: A job's folder, its results/, a results.parquet, or an MLflow run (runs:/ID).
        scorers: Names with commas between them; docs/evaluation.md lists them.
        by: A field by whose values scores are told too, such as metadata.task.
        expected_field: What the manifest calls the expected answer.
        endpoint_url: Of an S3 store other than AWS.
        mlflow_uri: Tracking server; empty: MLflow's own environment decides.
        mlflow_run_id: The run that scores are logged to; empty for none.
        manifest_sha256: Of the manifest that was planned. Only the cache looks at it.
        metrics: The mean of each scorer.
        summary: Scores with their intervals, for people.
        accuracy: The mean of the first scorer.
        scored: How many records it scored.
        evaluation_uri: Where evaluation.json is.
    """
    return dsl.ContainerSpec(
        image=default_image(),
        command=["vlmflow", "evaluate"],
        args=[
            "--executor-input",
            dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
            f"--results={results}",
            f"--scorers={scorers}",
            f"--by={by}",
            f"--expected={expected_field}",
            f"--endpoint-url={endpoint_url}",
            f"--mlflow-uri={mlflow_uri}",
            f"--track={mlflow_run_id}",
        ],
    )
