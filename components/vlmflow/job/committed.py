"""What an output says of itself, for those that look on: how far a job is, and what became of it.

Nothing here writes, and nothing is believed that does not add up.
"""

from dataclasses import dataclass
from typing import Any

from vlmflow.job import layout
from vlmflow.job.errors import CountsError
from vlmflow.job.generations import find_generations
from vlmflow.job.job_file import read_json
from vlmflow.job.plan import Plan
from vlmflow.job.progress_file import read_attempts
from vlmflow.job.results import digest_of_views
from vlmflow.job.shard_log import open_log
from vlmflow.job.store import Store


@dataclass(frozen=True, slots=True)
class SealedShard:
    """The counts of a shard whose log is closed."""

    number: int
    num_shards: int
    num_records: int  # of the shard, with those set aside
    num_succeeded: int
    num_failed: int  # with bad lines of the manifest
    num_skipped: int  # set aside by policy

    def counts(self) -> dict[str, int]:
        """By the names of report.json."""
        return {
            "records": self.num_records,
            "succeeded": self.num_succeeded,
            "failed": self.num_failed,
            "skipped": self.num_skipped,
        }


def read_report(store: Store) -> dict[str, Any] | None:
    """The report of a job, successful or not; None if the job is not done.

    Raises CountsError if its counts do not add up, or are not what was planned.
    """
    report = read_json(store, layout.REPORT)
    if report is None:
        return None
    counts, planned = report["counts"], report["manifest"]["records"]
    told = counts["succeeded"] + counts["failed"] + counts["skipped"]
    if not counts["records"] == told == planned:
        raise CountsError(f"{store.uri}: {planned} records were planned, the report has {counts}")
    by_class = sum(failure["count"] for failure in report["failures"].values())
    if by_class != counts["failed"] + counts["skipped"]:
        raise CountsError(f"{store.uri}: the report has {counts}, and {by_class} failures by class")
    return report


def read_success(store: Store) -> dict[str, Any] | None:
    """The report of a job that succeeded; None if there is none, or not of the latest generation.

    Raises as `read_report`, and CountsError if _SUCCESS.json is another job's or tells other counts
    than the report.
    """
    success = read_json(store, layout.SUCCESS)
    plan = read_plan(store)
    if success is None or plan is None:
        return None
    report = read_report(store)
    latest = find_generations(store, plan)[-1].number
    if report is None or not success["generation"] == report["generation"] == latest:
        return None
    same = (success["identity"], success["counts"]) == (report["job"]["identity"], report["counts"])
    if not same:
        raise CountsError(f"{store.uri}: {layout.SUCCESS} and {layout.REPORT} are of two jobs")
    return report


def read_sealed_shard(store: Store, number: int) -> SealedShard | None:
    """The counts of a shard that is done; None if it is not.

    Of the latest generation that asks it anything: what others asked before is not counted.
    Raises CountsError if it was sealed with records lacking.
    """
    plan = read_plan(store)
    if plan is None or not 0 <= number < len(plan.shards):
        return None
    shard = plan.shards[number]
    generations = find_generations(store, plan)
    asking = [one for one in generations if one.num_asked(shard)]
    generation = asking[-1] if asking else generations[0]
    is_first = generation.number == 0
    aside = plan.set_aside_of(shard) if is_first else []
    num_bad = sum(item.kind == "failed" for item in aside)
    asked = generation.num_asked(shard)
    num_succeeded = num_failed = 0
    if asked:  # a shard of bad lines alone is nobody's to do
        state = open_log(store, generation, shard).state
        if not state.is_sealed:
            return None
        num_succeeded, num_failed = state.num_succeeded, state.num_failed
        if num_succeeded + num_failed != asked:
            raise CountsError(
                f"{store.uri}: shard {number} asks {asked} records, and {num_succeeded} succeeded "
                f"and {num_failed} failed"
            )
    return SealedShard(
        number,
        len(plan.shards),
        num_records=asked + len(aside),
        num_succeeded=num_succeeded,
        num_failed=num_failed + num_bad,
        num_skipped=len(aside) - num_bad,
    )


def read_plan(store: Store) -> Plan | None:
    """The plan, if there is one."""
    values = read_json(store, layout.PLAN)
    return Plan.from_dict(values) if values is not None else None


def read_progress(store: Store, shard: int | None = None) -> dict[str, Any] | None:
    """How far a job is, as progress.json says; of one shard, as its latest attempt says.

    None before anybody began. Both have `status`, `done`, `records_per_second`, `updated_at`.
    """
    if shard is None:
        return read_json(store, layout.PROGRESS)
    attempts = [one for one in read_attempts(store) if one["shard"] == shard]
    return attempts[-1] if attempts else None


def read_run(store: Store) -> dict[str, Any] | None:
    """The job's MLflow run, as soon as it is there: `run_id` and `tracking_uri`."""
    return read_json(store, layout.TRACKING)


def read_results_digest(store: Store) -> str | None:
    """Of all that users read of a finished job: sha256 over the keys and digests of its files."""
    views = read_json(store, layout.VIEWS)
    return digest_of_views(views) if views else None
