"""`merge_report`: results and report of a job whose shards are all done."""

from kfp import dsl

from vlmflow.kubeflow.image import default_image


@dsl.container_component
def merge_report(
    spec: str,
    manifest_sha256: str,
    results: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    records: dsl.OutputPath(int),
    succeeded: dsl.OutputPath(int),
    failed: dsl.OutputPath(int),
    skipped: dsl.OutputPath(int),
    job_uri: dsl.OutputPath(str),
    results_uri: dsl.OutputPath(str),
    report_uri: dsl.OutputPath(str),
    mlflow_run_id: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """See that every shard is done and the report is written, and say what became of the job.

    Whoever finished the last shard has written the report; then this reads it. The step fails if
    more records failed than the job allows.

    Args:
        spec: The JobSpec, as `plan_shards` hands it on.
        manifest_sha256: Of the manifest that was planned. Only the cache looks at it.
        results: The job's results: URI, counts and identity of the job.
        metrics: Counts, throughput, and scores if the job was told to score its answers.
        report: The job's report, for people.
        summary: The report in short.
        records: Records of the manifest.
        succeeded: Records that have an answer.
        failed: Records that have an error instead.
        skipped: Records that were not asked, such as duplicates.
        job_uri: The job's folder.
        results_uri: Where its results are.
        report_uri: Where report.json is.
        mlflow_run_id: The job's run in MLflow; empty without one.
    """
    return dsl.ContainerSpec(
        image=default_image(),
        command=["vlmflow", "merge"],
        args=[
            "--executor-input",
            dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
            f"--spec={spec}",
        ],
    )
