"""`compare_gate`: two runs side by side, and whether the new one is good enough."""

from kfp import dsl

from vlmflow.kubeflow.image import default_image


@dsl.container_component
def compare_gate(
    candidate: str,
    gate: str,
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    is_passed: dsl.OutputPath(bool),
    gate_result: dsl.OutputPath(str),
    baseline: str = "",
    scorers: str = "",
    by: str = "",
    expected_field: str = "expected",
    endpoint_url: str = "",
    mlflow_uri: str = "",
    mlflow_run_id: str = "",
    manifest_sha256: str = "",
) -> dsl.ContainerSpec:
    """Compare two runs record by record, and ask the gate.

    A gate that is not passed is an answer and no failure of the step: a pipeline goes one way or
    the other by `is_passed`. A gate or a run that is not right fails the step.

    Args:
        candidate: The new run: a job's folder, its results/, or an MLflow run (runs:/ID).
        gate: Such as "accuracy >= -0.01 and images_per_second >= 0.95x"; docs/evaluation.md has
            its grammar. Empty: always passed.
        baseline: The old run. Empty: the candidate itself, for gates of plain numbers.
        scorers: Names with commas between them. Empty: those of the runs, else exact_match.
        by: A field by whose values scores are told too, such as metadata.task.
        expected_field: What the manifest calls the expected answer.
        endpoint_url: Of an S3 store other than AWS.
        mlflow_uri: Tracking server; empty: MLflow's own environment decides.
        mlflow_run_id: The run that the comparison is logged to; empty for none.
        manifest_sha256: Of the manifest that was planned. Only the cache looks at it.
        metrics: The scores of both, and 1 or 0 for the gate.
        report: Both runs side by side, for people.
        summary: The gate's clauses and the scores.
        is_passed: Whether the gate holds.
        gate_result: The gate in a sentence, with the clauses that do not hold.
    """
    return dsl.ContainerSpec(
        image=default_image(),
        command=["vlmflow", "compare"],
        args=[
            "--executor-input",
            dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
            "--soft-gate",
            f"--gate={gate}",
            f"--scorers={scorers}",
            f"--by={by}",
            f"--expected={expected_field}",
            f"--endpoint-url={endpoint_url}",
            f"--mlflow-uri={mlflow_uri}",
            f"--track={mlflow_run_id}",
            baseline,
            candidate,
        ],
    )
