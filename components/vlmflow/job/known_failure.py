"""What a scheduler that retries whatever the exit code asks first: can this still end well?"""

from vlmflow.job.committed import read_plan, read_report
from vlmflow.job.errors import TooManyFailuresError
from vlmflow.job.finish import check_failures
from vlmflow.job.generations import find_generations
from vlmflow.job.manifest import Manifest
from vlmflow.job.shard_log import open_log
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener


def check_known_failure(spec: JobSpec, shard: int | None = None) -> None:
    """Raises TooManyFailuresError if what is committed says that too many records have failed.

    Reads a few objects and loads no model. Of a job whose manifest has changed nothing is said
    here: whoever runs it finds that out.
    """
    opener = StoreOpener(spec.endpoint_url)
    store = opener.open(f"{spec.output.rstrip('/')}/{spec.name}")
    plan, manifest = read_plan(store), Manifest(opener, spec)
    if plan is None or plan.etag != manifest.etag():
        return
    latest = find_generations(store, plan)[-1]
    report = read_report(store)
    if report is not None and report["generation"] == latest.number:
        check_failures(report, spec)
    limits = spec.limits
    for one in latest.shards(plan):
        if shard not in (None, one.number):
            continue
        state = open_log(store, latest, one).state
        num_done = state.num_succeeded + state.num_failed
        is_enough = num_done >= limits.min_records and not state.is_sealed
        if is_enough and state.num_failed > limits.max_failure_rate * num_done:
            raise TooManyFailuresError(
                f"{state.num_failed} of the {num_done} records that are done of shard {one.number} "
                f"failed, {state.num_failed / num_done:.1%}, more than --max-failure-rate "
                f"{limits.max_failure_rate:.1%}; what is committed stays, and a higher "
                "--max-failure-rate or --min-records goes on"
            )
