"""`VLMPlanShardsOperator`: cuts a manifest into shards, for tasks that are mapped over them."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.airflow.operators.command import CommandOperator
from vlmflow.airflow.operators.job_operator import JobOperatorMixin
from vlmflow.airflow.operators.outcome import check_exit, output_of
from vlmflow.job.spec_arguments import JobPlace

if TYPE_CHECKING:
    from airflow.sdk import Context


class VLMPlanShardsOperator(JobOperatorMixin, CommandOperator):
    """Read the whole manifest, write the job's plan, and return its shards.

    Takes the job's arguments, `num_shards` among them, and returns one item a shard that has
    records, `[{"shard": "0/4"}, ...]`:

        plan = VLMPlanShardsOperator(task_id="plan", num_shards=4, **job)
        VLMBatchInferenceOperator.partial(task_id="infer", **job).expand_kwargs(plan.output)

    Done twice it returns the same. It fails for good if the output is planned in another number of
    shards already.
    """

    template_fields: Collection[str] = VLMBatchInferenceOperator.template_fields
    template_fields_renderers: Mapping[str, str] = (
        VLMBatchInferenceOperator.template_fields_renderers
    )

    def execute(self, context: "Context") -> list[dict[str, str]]:
        """Plan, and return the shards."""
        from vlmflow.job.planning import shards_to_do

        spec = self.job_spec()
        self.push_place_links(context, JobPlace.of(spec))
        ended = self.run_command(
            context, ["plan", "--spec", "-"], given=spec.canonical_json(), with_output=True
        )
        check_exit(ended, None)
        plan: dict[str, Any] = output_of(ended)
        self.log.info(
            "%s: %s records, %s set aside, sha256 %s",
            *(plan[name] for name in ("manifest", "num_records", "set_aside", "sha256")),
        )
        return [{"shard": shard} for shard in shards_to_do(plan)]
