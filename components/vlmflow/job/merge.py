"""Finish a job whose shards were done by others: `vlmflow merge`."""

import time
from typing import Any

from vlmflow.job import layout
from vlmflow.job.claim import Claims, acquire_claim
from vlmflow.job.commit_log import is_sealed
from vlmflow.job.errors import ClaimedError, InterruptedJobError, SpecError
from vlmflow.job.evaluator import MakeEvaluator, evaluates_nothing
from vlmflow.job.finish import Finisher, check_failures
from vlmflow.job.generations import find_generations
from vlmflow.job.job_file import Identity, read_json
from vlmflow.job.loop import StopSignal
from vlmflow.job.manifest import Manifest
from vlmflow.job.media import make_fetcher
from vlmflow.job.plan import Plan
from vlmflow.job.probe import create_is_atomic
from vlmflow.job.progress import Display
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener
from vlmflow.job.tracked import JobTracker


def merge_job(
    values: dict[str, Any],
    *,
    display: Display,
    stop: StopSignal,
    make_evaluator: MakeEvaluator = evaluates_nothing,
) -> dict[str, Any]:
    """Write views and report, and return the report.

    `values` are `output` and `name`, and what else of the JobSpec shall be other than in job.json:
    `endpoint_url`, `tracking`. Raises SpecError if there is no such job, ClaimedError if a shard is
    not done, and as a run does if too many records failed.
    """
    endpoint = values.get("endpoint_url")
    opener = StoreOpener(endpoint)
    store = opener.open(f"{values['output'].rstrip('/')}/{values['name']}")
    job, plan_values = read_json(store, layout.JOB), read_json(store, layout.PLAN)
    if job is None or plan_values is None:
        raise SpecError(f"{store.uri} holds no job; give --output and --name as `run` had them")
    tracking = {**job["spec"]["tracking"], **values.get("tracking", {})}
    spec = JobSpec.parse({**job["spec"], **values, "tracking": tracking})
    plan = Plan.from_dict(plan_values)
    identity = Identity(job["identity_parts"], job["resolved"]["dtype"])
    generations = find_generations(store, plan)
    latest = generations[-1]
    shards = latest.shards(plan)
    open_shards = [s.number for s in shards if not is_sealed(store, latest.prefix(s))]
    if open_shards:
        shown = ", ".join(map(str, open_shards[:10])) + (", ..." if len(open_shards) > 10 else "")
        raise ClaimedError(
            f"{len(open_shards)} of {len(shards)} shards of {store.uri} are not done: {shown}"
        )

    def wait(seconds: float) -> None:
        if stop.count:
            raise InterruptedJobError("told to stop before the report was written")
        time.sleep(seconds)

    with acquire_claim(Claims(store), layout.FINISH, sleep=wait, tell=display.say, is_patient=True):
        report, success = read_json(store, layout.REPORT), read_json(store, layout.SUCCESS)
        if report is None or success is None or success["generation"] != latest.number:
            tracker = JobTracker(
                spec, store, identity.digest, plan, job["identity_parts"]["model"], tell=display.say
            )
            tracker.start()
            finisher = Finisher(
                spec,
                store,
                plan,
                identity,
                generations,
                create_is_atomic=create_is_atomic(store),
                evaluator=make_evaluator(spec, opener, display, stop),
            )
            fetcher = make_fetcher(spec, opener, display.say)
            report = finisher.finish(tracker, fetcher, Manifest(opener, spec))
    check_failures(report, spec)
    return report
