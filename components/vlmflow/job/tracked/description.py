"""What a job's MLflow runs are called, and what they say of themselves from their first moment."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vlmflow import __version__
from vlmflow.job.plan import Plan, Shard
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store
from vlmflow.job.tracked.orchestrator import orchestrator_tags
from vlmflow_engine.generation import GenerationConfig

if TYPE_CHECKING:
    from vlmflow.tracking.lifecycle import RunDataset, RunDescription

JOB_PART = "job"  # the run of the whole; a shard of several has one of its own below it

# Of generation: what a person asks for first. The others are shown when they are set.
_SHOWN_OPTIONS = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
_DEFAULTS = asdict(GenerationConfig())


@dataclass(frozen=True, slots=True)
class TrackedJob:
    """What is known of a job before its first record is asked."""

    spec: JobSpec
    store: Store
    identity: str
    plan: Plan
    model_digest: str

    @property
    def model_name(self) -> str:
        return PurePath(self.spec.model).name

    def part_of(self, shard: Shard) -> str:
        """Whose run it is that a shard's metrics go to."""
        return JOB_PART if len(self.plan.shards) == 1 else f"shard-{shard.number:05d}"


def describe_part(job: TrackedJob, part: str) -> "RunDescription":
    """The run of the job, or of one of its shards."""
    from vlmflow.tracking.lifecycle import RunDescription

    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{job.spec.name}/{job.model_name}/{job.plan.sha256[:8]}/{now}"
    params: dict[str, Any]
    if part == JOB_PART:
        params = _job_params(job)
    else:
        name, shard = part, job.plan.shards[int(part.rpartition("-")[2])]
        params = {"first_ordinal": shard.first_ordinal, "num_records": shard.num_records}
    return RunDescription(
        name=name,
        experiment=job.spec.tracking.experiment,
        tags=_tags(job, part),
        params={name: str(value) for name, value in params.items()},
        dataset=dataset_of(job),
    )


def dataset_of(job: TrackedJob) -> "RunDataset":
    """The manifest."""
    from vlmflow.tracking.lifecycle import RunDataset

    return RunDataset(
        name=job.spec.name,
        uri=job.spec.manifest,
        digest=job.plan.sha256,
        profile={"num_records": job.plan.num_records, "num_bytes": job.plan.num_bytes},
    )


def engine_params(info: dict[str, Any]) -> dict[str, str]:
    """What the engine resolved."""
    return {f"engine.{name}": str(value) for name, value in info.items()}


def _job_params(job: TrackedJob) -> dict[str, Any]:
    spec = job.spec
    dumped = spec.model_dump(mode="json")
    params = {
        "model": spec.model,
        "model_digest": job.model_digest[:16],
        "manifest_digest": job.plan.sha256[:16],
        "num_records": job.plan.num_records,
        "num_shards": len(job.plan.shards),
        "limit": spec.limit,
        "seed": spec.seed,
    }
    return params | {
        f"generation.{name}": value
        for name, value in dumped["generation"].items()
        if name in _SHOWN_OPTIONS or value != _DEFAULTS[name]
    }


def _tags(job: TrackedJob, part: str) -> dict[str, str]:
    spec = job.spec
    return {
        "job.name": spec.name,
        "job.identity": job.identity,
        "job.part": part,
        "manifest.uri": spec.manifest,
        "manifest.sha256": job.plan.sha256,
        "model.path": spec.model,
        "model.digest": job.model_digest,
        "output.uri": job.store.uri,
        "vlmflow.version": __version__,
        **orchestrator_tags(),
    }
