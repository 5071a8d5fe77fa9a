"""`VLMMergeOperator`: results and report of a job that was done in shards."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from vlmflow.airflow.hooks.vlmflow import mask_password
from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.airflow.operators.command import CommandOperator
from vlmflow.airflow.operators.job_operator import JobOperatorMixin
from vlmflow.job.given import given, given_group

if TYPE_CHECKING:
    from airflow.sdk import Context


class VLMMergeOperator(JobOperatorMixin, CommandOperator):
    """See that all shards are done and the report is written, and return the job's summary.

    Takes the job's arguments as the other operators do, or `output` and `name` alone. Whoever seals
    the last shard writes the report already; then this reads it, and reconciles. It is the task for
    a mapped job's outlet: `outlets=[results_asset(output, name)]`.
    """

    template_fields: Collection[str] = VLMBatchInferenceOperator.template_fields
    template_fields_renderers: Mapping[str, str] = (
        VLMBatchInferenceOperator.template_fields_renderers
    )

    def execute(self, context: "Context") -> dict[str, Any]:
        """Merge, and return the summary."""
        place = self.job_place()
        self.push_place_links(context, place)
        output, _, name = place.uri.rpartition("/")
        arguments = ["merge", "--output", output, "--name", name]
        if place.endpoint_url is not None:
            arguments += ["--endpoint-url", place.endpoint_url]
        return self.finish_job(context, place, self.run_command(context, arguments))

    def process_environment(self, context: "Context") -> dict[str, str]:
        """With MLflow's URI by the environment: it may hold a password, which job.json does not."""
        environment = super().process_environment(context)
        uri = self.job_hook.settings.mlflow_uri
        tracking = given_group("tracking", self.tracking)
        if isinstance(tracking, Mapping):
            uri = given(tracking.get("uri")) or uri
        mask_password(uri)
        return ({"MLFLOW_TRACKING_URI": uri} if uri else {}) | environment
