"""`batch_inference`: a manifest, or a shard of it, through a vision-language model."""

from kfp import dsl

from vlmflow.kubeflow.image import default_image


@dsl.container_component
def batch_inference(
    spec: str,
    manifest_sha256: str,
    results: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    succeeded: dsl.OutputPath(int),
    failed: dsl.OutputPath(int),
    skipped: dsl.OutputPath(int),
    is_complete: dsl.OutputPath(bool),
    report_uri: dsl.OutputPath(str),
    shard: str = "",
    gpus: str = "",
) -> dsl.ContainerSpec:
    """Ask a model every record, and commit one result for each.

    A retry goes on from what is committed, whatever killed the step before it. One that cannot end
    well, because too many records have failed already, ends at once and loads no model.

    Args:
        spec: The JobSpec, as `plan_shards` hands it on.
        manifest_sha256: Of the manifest that was planned. Only the cache looks at it: with the same
            spec and another manifest this is another step.
        shard: Such as "0/4"; empty for the whole job.
        gpus: "all", or how many GPUs of the pod work on the job's shards; not together with shard.
            Empty for one.
        results: The job's results: URI, counts and identity of the job.
        metrics: Counts and throughput.
        summary: The same, for people.
        succeeded: Records that have an answer, of the shard or of the job.
        failed: Records that have an error instead.
        skipped: Records that were not asked, such as duplicates.
        is_complete: Whether the whole job is done, and its report written.
        report_uri: Where report.json is, or will be.
    """
    return dsl.ContainerSpec(
        image=default_image(),
        command=["vlmflow", "run"],
        args=[
            "--executor-input",
            dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
            f"--spec={spec}",
            f"--shard={shard}",
            f"--gpus={gpus}",
        ],
    )
