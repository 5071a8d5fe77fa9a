"""A manifest of images through a vision-language model, in shards, behind a gate.

Copy it and edit it; docs/kubeflow.md says how it gets from here to a cluster.

    python pipelines/vlm_batch_inference_pipeline.py --compile pipeline.yaml
    python pipelines/vlm_batch_inference_pipeline.py --host http://localhost:8080 \\
        --manifest s3://data/manifest.jsonl --model s3://models/shapes --output s3://data/results
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

from kfp import dsl

from vlmflow.cli.job_options import add_job_options, parse_spec
from vlmflow.kubeflow.batch_inference.component import batch_inference
from vlmflow.kubeflow.compare_gate.component import compare_gate
from vlmflow.kubeflow.evaluate.component import evaluate
from vlmflow.kubeflow.gpu_task import (
    GPU_NODE_SELECTOR,
    GPU_RESOURCE,
    GPU_TOLERATIONS,
    GpuSettings,
    gpu_task,
)
from vlmflow.kubeflow.image import default_image
from vlmflow.kubeflow.job_parameters import spec_parameters
from vlmflow.kubeflow.merge_report.component import merge_report
from vlmflow.kubeflow.plan_shards.component import plan_shards
from vlmflow.kubeflow.step_task import AWS_KEYS, MLFLOW_KEYS, EnvSource, step_task
from vlmflow.kubeflow.submit import PIPELINE_DEFAULTS, PipelineSettings, run_main

NAME = "vlm-batch-inference"


@dsl.container_component
def alert(job_uri: str, gate_result: str) -> dsl.ContainerSpec:
    """Fail, so that whoever hears of failed runs hears of this one. Put your notifier here."""
    return dsl.ContainerSpec(
        image=default_image(),
        command=["python", "-c", "import sys; sys.exit(sys.argv[1])"],
        args=[f"{job_uri} is not published: {gate_result}"],
    )


def make_pipeline(settings: PipelineSettings = PIPELINE_DEFAULTS) -> Any:
    """The pipeline. What kfp does not take as a pipeline's parameter is in `settings`."""

    @dsl.pipeline(name=NAME, description=__doc__.split("\n")[0])
    def vlm_batch_inference(
        manifest: str,
        model: str,
        output: str,
        num_shards: int = 4,
        options: str = "{}",
        scorers: str = "exact_match",
        gate: str = "exact_match >= 0.9",
        baseline: str = "",
        gpu_type: str = GPU_RESOURCE,
        gpu_count: int = 1,
        cpu: str = "8",
        memory: str = "32Gi",
        tolerations: list = GPU_TOLERATIONS,
        node_selector: dict = GPU_NODE_SELECTOR,
        aws_secret: str = "vlmflow-aws",
        mlflow_secret: str = "vlmflow-mlflow",
    ) -> None:
        """
        Args:
            manifest: Records of images and prompts: s3://.
            model: owner/name of the hub, s3://bucket/prefix, or models:/name/version.
            output: Where results go: s3://. The job's own folder is below it.
            num_shards: As many as there are GPUs: each is a task, and each task loads the model.
            options: The JobSpec's other fields in JSON, as `vlmflow spec` prints them.
            scorers: Of the evaluation; docs/evaluation.md lists them.
            gate: What must hold for the results to be published.
            baseline: A run to compare with, for gates such as accuracy >= -0.01; empty: itself.
            gpu_type: What the device plugin calls the GPUs.
            gpu_count: GPUs of one task. A shard uses one.
            cpu: Limit of a GPU task.
            memory: Limit of a GPU task; /dev/shm counts.
            tolerations: Of a GPU task, as Kubernetes writes them.
            node_selector: Labels of the nodes that a GPU task may run on.
            aws_secret: Secret with AWS_ACCESS_KEY_ID, ...; need not exist.
            mlflow_secret: Secret with MLFLOW_TRACKING_URI, ...; need not exist.
        """
        secrets = (EnvSource(aws_secret, AWS_KEYS), EnvSource(mlflow_secret, MLFLOW_KEYS))
        steps = replace(settings.steps, secrets=(*settings.steps.secrets, *secrets))
        gpu = GpuSettings(
            resource=gpu_type,
            count=gpu_count,
            cpu=cpu,
            memory=memory,
            tolerations=tolerations,
            node_selector=node_selector,
            shm_size=settings.shm_size,
            cache_claim=settings.cache_claim,
        )
        if not settings.has_gpu:
            gpu = GpuSettings(
                count=None,
                cpu=cpu,
                memory=memory,
                shm_size=None,
                cache_claim=settings.cache_claim,
            )

        plan = plan_shards(
            manifest=manifest, model=model, output=output, num_shards=num_shards, options=options
        )
        # A manifest's URI stays when its content changes: only a new look can tell. Its digest is
        # an input of all that follows, which may be cached therefore.
        step_task(plan, replace(steps, is_cached=False))
        job = {"spec": plan.outputs["spec"], "manifest_sha256": plan.outputs["manifest_sha256"]}

        with dsl.ParallelFor(
            plan.outputs["shards"], name="shards", parallelism=settings.parallelism
        ) as shard:
            infer = gpu_task(batch_inference(shard=shard, **job), gpu, steps)

        merge = step_task(merge_report(**job), steps).after(infer)
        scored = {
            "scorers": scorers,
            "endpoint_url": plan.outputs["endpoint_url"],
            "mlflow_uri": plan.outputs["mlflow_uri"],
            "mlflow_run_id": merge.outputs["mlflow_run_id"],
            "manifest_sha256": plan.outputs["manifest_sha256"],
        }
        evaluated = step_task(evaluate(results=merge.outputs["job_uri"], **scored), steps)
        judged = compare_gate(
            candidate=merge.outputs["job_uri"], baseline=baseline, gate=gate, **scored
        )
        step_task(judged, steps).after(evaluated)

        with dsl.If(judged.outputs["is_passed"] == True, name="passed"):  # noqa: E712
            # The results as an artifact with their own URI, for whoever works with good ones only.
            dsl.importer(
                artifact_uri=merge.outputs["results_uri"],
                artifact_class=dsl.Dataset,
                reimport=True,
                metadata={
                    "manifest_sha256": plan.outputs["manifest_sha256"],
                    "report_uri": merge.outputs["report_uri"],
                    "gate_result": judged.outputs["gate_result"],
                },
            ).set_display_name("publish")
        with dsl.Else(name="not passed"):
            step_task(
                alert(job_uri=merge.outputs["job_uri"], gate_result=judged.outputs["gate_result"]),
                replace(steps, retry=None),
            )

    return vlm_batch_inference


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    return spec_parameters(parse_spec(options))


if __name__ == "__main__":
    sys.exit(run_main(__doc__, make_pipeline, add_job_options, _parameters))
