"""From a JobSpec to the parameters of a pipeline, of which `plan_shards` makes the same JobSpec."""

import json
from typing import TYPE_CHECKING, Any

from vlmflow.job.shown import spec_for_pipeline
from vlmflow.job.spec_arguments import make_spec

if TYPE_CHECKING:
    from vlmflow.job.spec import JobSpec

# Parameters of their own; all else of the spec is `options`, in JSON.
_OWN = ("manifest", "model", "output", "num_shards")


def job_parameters(**fields: Any) -> dict[str, Any]:
    """Parameters for a job's fields, by the JobSpec's names, as of Airflow's operators.

    client.create_run_from_pipeline_package("vlm_batch_inference_pipeline.yaml", job_parameters(
        manifest="s3://data/manifest.jsonl", model="s3://models/shapes", output="s3://data/results",
        num_shards=4, generation={"max_new_tokens": 64}))

    Raises SpecError.
    """
    return spec_parameters(make_spec(fields))


def spec_parameters(spec: "JobSpec") -> dict[str, Any]:
    """Parameters for a spec. Raises SpecError for one that a pipeline must not show."""
    spec_for_pipeline(spec)
    # Without what is at its default: people read it, and an older image may know less.
    values = spec.model_dump(mode="json", exclude_defaults=True)
    own = {name: values.pop(name, getattr(spec, name)) for name in _OWN}
    return own | {"options": json.dumps(values, sort_keys=True, separators=(",", ":"))}
