"""Every night the evaluation set through the model, compared with the last good night.

Copy it and edit it. The defaults of its form are those of `make airflow`: docs/airflow.md.
"""

from datetime import datetime, timedelta

from airflow.sdk import Asset, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException

from vlmflow.airflow import VLMBatchInferenceOperator, VLMCompareOperator

GPU_POOL = "default_pool"  # or one with as many slots as there are GPUs

# Each good night is an event of it: the newest one is what the next night is compared with.
GOOD = Asset("vlm_nightly_good")

CONNECTIONS = {"vlmflow_conn_id": "vlmflow_default", "aws_conn_id": "aws_default"}
# A run of the schedule is named by its night, one by hand by its day.
NAME = "nightly-{{ (dag_run.logical_date or dag_run.run_after) | ds }}"
RUN = "{{ params.output }}/" + NAME


@dag(
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["vlmflow"],
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    params={
        "manifest": Param(
            "s3://demo/shapes/manifest.jsonl",
            type="string",
            minLength=1,
            title="Evaluation set",
            description="A manifest whose records have an expected answer.",
        ),
        "model": Param(
            "s3://demo/models/shapes",
            type="string",
            minLength=1,
            title="Model",
            description="Such as models:/name@candidate, which moves from night to night.",
        ),
        "output": Param("s3://demo/nightly", type="string", minLength=1, title="Output"),
        "scorers": Param("exact_match,token_f1", type="string", minLength=1, title="Scorers"),
        "gate": Param(
            "accuracy >= -0.01 and images_per_second >= 0.5x",
            type="string",
            minLength=1,
            title="Gate",
            description="Signed numbers and x are compared with the last good night.",
        ),
    },
    doc_md="""
### The evaluation set through the model, every night

The job gives its worker slot back while it runs (`deferrable`), scores its answers itself, and is
then compared, record by record, with the last good night. A night that passes the gate becomes the
next good one; one that does not fails the run.

The last good night is the newest event of the asset `vlm_nightly_good`: no variable and no file
that could be out of step. The first night is compared with itself.
""",
)
def vlm_nightly_eval() -> None:
    infer = VLMBatchInferenceOperator(
        task_id="infer",
        manifest="{{ params.manifest }}",
        model="{{ params.model }}",
        output="{{ params.output }}",
        name=NAME,
        evaluation='{"scorers": {{ params.scorers | tojson }}}',
        deferrable=True,
        pool=GPU_POOL,
        **CONNECTIONS,
    )

    @task(inlets=[GOOD])
    def last_good(run: str, inlet_events) -> str:
        """The job of the newest good night but this one; this one if there is none."""
        for event in reversed(inlet_events[GOOD]):
            if event.extra["job"] != run:
                return event.extra["job"]
        return run

    gate = VLMCompareOperator(
        task_id="gate",
        baseline=last_good(RUN),
        candidate=infer.output,
        scorers="{{ params.scorers }}",
        gate="{{ params.gate }}",
        pass_task_ids="keep",
        fail_task_ids="alert",
        **CONNECTIONS,
    )

    @task(outlets=[GOOD])
    def keep(run: str, outlet_events) -> None:
        """Make this night the one that later ones are compared with."""
        outlet_events[GOOD].extra = {"job": run}

    @task(retries=0)
    def alert(run: str) -> None:
        """Fail, so that whoever hears of failed runs hears of this one. Put your notifier here."""
        raise AirflowFailException(f"{run} is worse than the last good night: see the task gate")

    gate >> [keep(RUN), alert(RUN)]


vlm_nightly_eval()
