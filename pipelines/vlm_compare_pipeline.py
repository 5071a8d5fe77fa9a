"""Two runs that are done side by side, and a gate between them.

Copy it and edit it; docs/kubeflow.md says how it gets from here to a cluster.

    python pipelines/vlm_compare_pipeline.py --compile pipeline.yaml
    python pipelines/vlm_compare_pipeline.py --host http://localhost:8080 \\
        --baseline s3://data/results/last-week --candidate s3://data/results/today \\
        --gate "accuracy >= -0.01 and images_per_second >= 0.95x"
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

from kfp import dsl

from vlmflow.kubeflow.compare_gate.component import compare_gate
from vlmflow.kubeflow.evaluate.component import evaluate
from vlmflow.kubeflow.image import default_image
from vlmflow.kubeflow.step_task import AWS_KEYS, MLFLOW_KEYS, EnvSource, step_task
from vlmflow.kubeflow.submit import PIPELINE_DEFAULTS, PipelineSettings, run_main

NAME = "vlm-compare"


@dsl.container_component
def alert(candidate: str, gate_result: str) -> dsl.ContainerSpec:
    """Fail, so that whoever hears of failed runs hears of this one. Put your notifier here."""
    return dsl.ContainerSpec(
        image=default_image(),
        command=["python", "-c", "import sys; sys.exit(sys.argv[1])"],
        args=[f"{candidate} is worse than it may be: {gate_result}"],
    )


def make_pipeline(settings: PipelineSettings = PIPELINE_DEFAULTS) -> Any:
    """The pipeline. What kfp does not take as a pipeline's parameter is in `settings`."""

    @dsl.pipeline(name=NAME, description=__doc__.split("\n")[0])
    def vlm_compare(
        baseline: str,
        candidate: str,
        gate: str,
        scorers: str = "exact_match",
        by: str = "",
        expected_field: str = "expected",
        endpoint_url: str = "",
        aws_secret: str = "vlmflow-aws",
        mlflow_secret: str = "vlmflow-mlflow",
    ) -> None:
        """
        Args:
            baseline: The old run: a job's folder, or an MLflow run (runs:/ID).
            candidate: The new run.
            gate: Such as "accuracy >= -0.01 and images_per_second >= 0.95x".
            scorers: Of the evaluation; docs/evaluation.md lists them.
            by: A field by whose values scores are told too, such as metadata.task.
            expected_field: What the manifest calls the expected answer.
            endpoint_url: Of an S3 store other than AWS.
            aws_secret: Secret with AWS_ACCESS_KEY_ID, ...; need not exist.
            mlflow_secret: Secret with MLFLOW_TRACKING_URI, ...; need not exist.
        """
        secrets = (EnvSource(aws_secret, AWS_KEYS), EnvSource(mlflow_secret, MLFLOW_KEYS))
        steps = replace(settings.steps, secrets=(*settings.steps.secrets, *secrets))
        scored = {
            "scorers": scorers,
            "by": by,
            "expected_field": expected_field,
            "endpoint_url": endpoint_url,
        }
        evaluated = step_task(evaluate(results=candidate, **scored), steps)
        judged = compare_gate(candidate=candidate, baseline=baseline, gate=gate, **scored)
        step_task(judged, steps).after(evaluated)
        with dsl.If(judged.outputs["is_passed"] == False, name="not passed"):  # noqa: E712
            step_task(
                alert(candidate=candidate, gate_result=judged.outputs["gate_result"]),
                replace(steps, retry=None),
            )

    return vlm_compare


def _add_runs(parser: argparse.ArgumentParser) -> None:
    runs = parser.add_argument_group("runs")
    runs.add_argument("--baseline", metavar="RUN", help="the old run")
    runs.add_argument("--candidate", metavar="RUN", help="the new run")
    runs.add_argument("--gate", metavar="GATE", help="what must hold")


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    return dict(vars(options))


if __name__ == "__main__":
    sys.exit(run_main(__doc__, make_pipeline, _add_runs, _parameters))
