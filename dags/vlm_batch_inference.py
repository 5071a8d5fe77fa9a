"""A manifest of images through a vision-language model, in shards, behind a gate.

Copy it and edit it. The defaults of its form are those of `make airflow`. Connections, pools and
all operators: docs/airflow.md.
"""

from datetime import timedelta

from airflow.sdk import Asset, AssetAlias, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException

from vlmflow.airflow import (
    VLMBatchInferenceOperator,
    VLMCompareOperator,
    VLMEvaluateOperator,
    VLMManifestSensor,
    VLMMergeOperator,
    VLMPlanShardsOperator,
)

# A pool with as many slots as there are GPUs; its shards then wait for a GPU, and not for a worker.
GPU_POOL = "default_pool"

# What DAGs downstream may have as their schedule. An event's extra says which run was published.
PUBLISHED = Asset("vlm_published")

CONNECTIONS = {"vlmflow_conn_id": "vlmflow_default", "aws_conn_id": "aws_default"}

# The job, said once: all tasks must mean the same one. A template makes text, and JSON of groups.
JOB = {
    **CONNECTIONS,
    "manifest": "{{ params.manifest }}",
    "model": "{{ params.model }}",
    "output": "{{ params.output }}",
    "name": "{{ params.name }}",
    "prompt": "{{ params.prompt }}",
    "num_shards": "{{ params.num_shards }}",
    "generation": '{"max_new_tokens": {{ params.max_new_tokens }}}',
    "engine": "{{ params.engine | tojson }}",
    "limits": "{{ params.limits | tojson }}",
}

PARAMS = {
    "manifest": Param(
        "s3://demo/shapes/manifest.jsonl",
        type="string",
        minLength=1,
        title="Manifest",
        description="Records of images and prompts: s3:// or a path every worker can read.",
    ),
    "model": Param(
        "s3://demo/models/shapes",
        type="string",
        minLength=1,
        title="Model",
        description="A folder, owner/name of the hub, s3://..., or models:/name@alias.",
    ),
    "output": Param(
        "s3://demo/results",
        type="string",
        minLength=1,
        title="Output",
        description="The job's own folder is below it.",
    ),
    "name": Param(
        "shapes",
        type="string",
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        title="Name",
        description="Of the job. The same name and options go on with a job, or find it done.",
    ),
    "prompt": Param(
        None,
        type=["null", "string"],
        title="Prompt",
        description="Of all records, for manifests whose records have none.",
    ),
    "num_shards": Param(
        4,
        type="integer",
        minimum=1,
        maximum=100,
        title="Shards",
        description="Tasks that work at the same time, if there are slots.",
    ),
    "max_new_tokens": Param(64, type="integer", minimum=1, title="Longest answer", section="Model"),
    "engine": Param({}, type="object", title="Engine", section="Model", description="Its options."),
    "limits": Param(
        {"max_failure_rate": 0.1},
        type="object",
        title="Limits",
        section="Model",
        description="How many records may fail, how often is committed, ...",
    ),
    "scorers": Param("exact_match", type="string", title="Scorers", section="Gate"),
    "gate": Param(
        "exact_match >= 0.9",
        type="string",
        minLength=1,
        title="Gate",
        section="Gate",
        description="What must hold for the results to be published.",
    ),
    "baseline": Param(
        None,
        type=["null", "string"],
        title="Baseline",
        section="Gate",
        description="A run to compare with, for gates such as accuracy >= -0.01; none: itself.",
    ),
}


@dag(
    schedule=None,
    catchup=False,
    is_paused_upon_creation=False,  # it runs only when somebody asks
    params=PARAMS,
    max_active_runs=4,
    tags=["vlmflow"],
    default_args={"retries": 3, "retry_delay": timedelta(seconds=30)},
    doc_md="""
### A manifest of images through a vision-language model

Waits for the manifest, cuts it into shards, runs a task for each, merges, scores the answers, and
publishes the results if the gate holds.

* **Idempotent.** A retry, a cleared task or a second run with the same name and options goes on
  from what is committed on S3, and each record is answered once.
* **A bad record is not a bad run.** An image that cannot be read is in `failures/`; the run fails
  when more than `max_failure_rate` of the records do.
* **Truth is on S3**: a task succeeds when the job's committed report, or its shard's seal, says so.
""",
)
def vlm_batch_inference() -> None:
    there = VLMManifestSensor(
        task_id="wait_for_manifest",
        manifest=JOB["manifest"],
        deferrable=True,
        timeout=timedelta(hours=6).total_seconds(),
        **CONNECTIONS,
    )
    plan = VLMPlanShardsOperator(task_id="plan", **JOB)
    shards = VLMBatchInferenceOperator.partial(
        task_id="infer",
        map_index_template="{{ task.shard }}",
        pool=GPU_POOL,
        **JOB,
    ).expand_kwargs(plan.output)
    merge = VLMMergeOperator(task_id="merge", outlets=[AssetAlias("vlm_results")], **JOB)
    evaluate = VLMEvaluateOperator(
        task_id="evaluate", results=merge.output, scorers="{{ params.scorers }}", **CONNECTIONS
    )
    gate = VLMCompareOperator(
        task_id="gate",
        baseline="{{ params.baseline or (params.output ~ '/' ~ params.name) }}",
        candidate=merge.output,
        scorers="{{ params.scorers }}",
        gate="{{ params.gate }}",
        pass_task_ids="publish",
        fail_task_ids="alert",
        **CONNECTIONS,
    )

    @task(outlets=[PUBLISHED])
    def publish(summary: dict, outlet_events) -> None:
        """Tell whoever waits for good results where they are."""
        told = {name: summary[name] for name in ("job", "results", "counts", "digest")}
        outlet_events[PUBLISHED].extra = told

    @task(retries=0)
    def alert(summary: dict, gate: str) -> None:
        """Fail, so that whoever hears of failed runs hears of this one. Put your notifier here."""
        raise AirflowFailException(f"{summary['job']} is not published: {gate!r} does not hold")

    there >> plan
    shards >> merge
    evaluate >> gate >> [publish(merge.output), alert(merge.output, "{{ params.gate }}")]


vlm_batch_inference()
