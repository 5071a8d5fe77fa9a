"""`plan_shards`: the job, said once, and the shards that it is cut into."""

from kfp import dsl

from vlmflow.kubeflow.image import default_image


@dsl.container_component
def plan_shards(
    manifest: str,
    model: str,
    output: str,
    spec: dsl.OutputPath(str),
    shards: dsl.OutputPath(list),
    shard_count: dsl.OutputPath(int),
    records: dsl.OutputPath(int),
    manifest_sha256: dsl.OutputPath(str),
    job_name: dsl.OutputPath(str),
    job_uri: dsl.OutputPath(str),
    endpoint_url: dsl.OutputPath(str),
    mlflow_uri: dsl.OutputPath(str),
    summary: dsl.Output[dsl.Markdown],
    num_shards: int = 1,
    options: str = "{}",
) -> dsl.ContainerSpec:
    """Read the whole manifest, write the job's plan, and say what every later step must know.

    Done twice it says the same. It must never be cached: a manifest's URI stays when its content
    changes, and the digest that comes out of here is what later steps are cached by.

    Args:
        manifest: Records of images and prompts: s3:// or a path that every step can read.
        model: A folder, owner/name of the hub, s3://bucket/prefix, or models:/name/version.
        output: Where results go: s3:// or a path. The job's own folder is below it.
        num_shards: Parts that the manifest is cut into, each for one task at a time.
        options: The JobSpec's other fields as a JSON object, as `vlmflow spec` prints them.
        spec: The whole JobSpec, for the steps that follow.
        shards: One text for each shard that has records, such as "0/4", for a ParallelFor.
        shard_count: How many shards the plan has, with those that have no records.
        records: How many records the manifest has.
        manifest_sha256: Digest of the manifest's content.
        job_name: The job's folder below the output.
        job_uri: Where that folder is.
        endpoint_url: Of an S3 store other than AWS, as the options say; for steps without a spec.
        mlflow_uri: Of MLflow, as the options say.
        summary: The plan, for people.
    """
    return dsl.ContainerSpec(
        image=default_image(),
        command=["vlmflow", "plan"],
        args=[
            "--executor-input",
            dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
            f"--spec={options}",
            f"--manifest={manifest}",
            f"--model={model}",
            f"--output={output}",
            f"--num-shards={num_shards}",
        ],
    )
