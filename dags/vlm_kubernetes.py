"""A manifest of images through a vision-language model, a pod with a GPU for each shard.

Copy it and edit it: image, namespace and secret are a cluster's own. docs/airflow.md says what the
cluster must have.
"""

from datetime import timedelta

from airflow.providers.cncf.kubernetes.secret import Secret
from airflow.sdk import AssetAlias, Param, dag, task

from vlmflow.airflow import VLMBatchInferencePodOperator

GPU_POOL = "default_pool"  # or one with as many slots as the cluster has GPUs for this

# Keys of a Kubernetes Secret, as references: none is in a template, a log or Airflow's database.
# With IRSA or Workload Identity, name a service account instead.
S3_SECRET = "vlmflow-s3"
SECRETS = [
    Secret("env", "AWS_ACCESS_KEY_ID", S3_SECRET, "access_key"),
    Secret("env", "AWS_SECRET_ACCESS_KEY", S3_SECRET, "secret_key"),
]


@dag(
    schedule=None,
    catchup=False,
    tags=["vlmflow"],
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    params={
        "manifest": Param(
            "s3://my-bucket/manifest.jsonl", type="string", minLength=1, title="Manifest"
        ),
        "model": Param(
            "s3://my-bucket/models/my-model",
            type="string",
            minLength=1,
            title="Model",
            description="s3://..., owner/name of the hub, or models:/name@alias.",
        ),
        "output": Param("s3://my-bucket/results", type="string", minLength=1, title="Output"),
        "name": Param(
            "my-job",
            type="string",
            pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
            title="Name",
            description="Of the job. The same name and options go on with a job, or find it done.",
        ),
        "num_shards": Param(
            8,
            type="integer",
            minimum=1,
            maximum=100,
            title="Shards",
            description="A pod each. Several times the number of GPUs evens out slow ones.",
        ),
        "max_new_tokens": Param(256, type="integer", minimum=1, title="Longest answer"),
        "image": Param(
            None,
            type=["null", "string"],
            title="Image",
            description="With vlmflow and its engine; none: that of the connection.",
            section="Cluster",
        ),
        "namespace": Param("default", type="string", title="Namespace", section="Cluster"),
    },
    doc_md="""
### A pod with a GPU for each shard

Each pod has one GPU, a memory-backed `/dev/shm`, the toleration and the node selector that go with
a GPU, and 55 s to commit what is in flight when it is told to end. While pods run, tasks are
deferred and hold no slot of a worker.

A pod that is evicted, or whose node is gone, fails its try; the next one goes on from what is
committed. What decides is the job's report on S3, not the pod's phase. Whoever does the last shard
writes the report; `report` finds it.
""",
)
def vlm_kubernetes() -> None:
    @task
    def shards(params: dict) -> list[dict[str, str]]:
        """The parts of the job; the first pod to come reads the manifest and cuts it so."""
        count = params["num_shards"]
        return [{"shard": f"{number}/{count}"} for number in range(count)]

    infer = VLMBatchInferencePodOperator.partial(
        task_id="infer",
        map_index_template="{{ task.shard }}",
        manifest="{{ params.manifest }}",
        model="{{ params.model }}",
        output="{{ params.output }}",
        name="{{ params.name }}",
        generation='{"max_new_tokens": {{ params.max_new_tokens }}}',
        image="{{ params.image or '' }}",
        namespace="{{ params.namespace }}",
        gpus=1,
        secrets=SECRETS,
        deferrable=True,
        pool=GPU_POOL,
        outlets=[AssetAlias("vlm_results")],
        vlmflow_conn_id="vlmflow_default",
        aws_conn_id="aws_default",
    ).expand_kwargs(shards())

    @task
    def report(summaries) -> dict:
        """The summary of the whole job, which the pod that did the last shard came back with."""
        return next(s for s in reversed(list(summaries)) if s.get("is_job_done", True))

    report(infer.output)


vlm_kubernetes()
