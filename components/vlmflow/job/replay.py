"""Send MLflow what it did not take while a job ran: `vlmflow track --replay`."""

import json
from typing import Any

from vlmflow.job import layout
from vlmflow.job.errors import SpecError
from vlmflow.job.evaluator import Evaluated
from vlmflow.job.finish import failure_reason
from vlmflow.job.finished import asked_of, read_lines, read_timeline
from vlmflow.job.job_file import Identity, read_json
from vlmflow.job.manifest import Manifest
from vlmflow.job.media import make_fetcher
from vlmflow.job.plan import Plan
from vlmflow.job.progress import Display
from vlmflow.job.samples import make_samples
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import ObjectMissingError, Store, StoreOpener
from vlmflow.job.tracked import (
    CollectedLines,
    JobTracker,
    PageContent,
    read_times,
    traced_records,
)
from vlmflow.job.tracked.registers import attached_before

END_SECONDS = 3600.0  # nobody's GPU waits for it


def replay_job(
    uri: str, values: dict[str, Any], *, is_whole: bool, display: Display
) -> dict[str, Any] | None:
    """Send what is lacking; return where the run is, or None if nothing is.

    `uri` is the job's folder, OUTPUT/NAME. `values` may have `endpoint_url` and `tracking`, where
    they are other than in job.json. With `is_whole` all is sent, lacking or not. Raises SpecError
    if there is no job or the server does not answer.
    """
    opener = StoreOpener(values.get("endpoint_url"))
    store = opener.open(uri.rstrip("/"))
    job, plan_values = read_json(store, layout.JOB), read_json(store, layout.PLAN)
    if job is None or plan_values is None:
        raise SpecError(f"{store.uri} holds no job; give the folder OUTPUT/NAME of `run`")
    tracking = {**job["spec"]["tracking"], **values.get("tracking", {})}
    tracking |= {"enabled": True, "end_seconds": END_SECONDS}
    spec = JobSpec.parse({**job["spec"], **values, "tracking": tracking})
    unlogged, report = read_json(store, layout.UNLOGGED), read_json(store, layout.REPORT)
    has_points = next(store.list(layout.SPOOL), None) is not None
    if not (unlogged or has_points or (is_whole and report)):
        return None
    plan = Plan.from_dict(plan_values)
    identity = Identity(job["identity_parts"], job["resolved"]["dtype"])
    tracker = JobTracker(
        spec,
        store,
        identity.digest,
        plan,
        job["identity_parts"]["model"],
        tell=display.say,
        attached=attached_before(store),
    )
    tracker.start()
    if report is None:
        # It is not done: only points are there, and how its last attempt ended.
        is_complete = tracker.finish(None, status=unlogged["status"] if unlogged else "KILLED")
    else:
        with CollectedLines(spec.tracking, read_times(store)) as collected:
            content = _content(spec, store, plan, report, collected, opener, display)
            reason = failure_reason(report, spec)
            status = "FINISHED" if reason is None else "FAILED"
            is_complete = tracker.finish(content, status=status)
    reference = tracker.run_reference()
    if not is_complete:
        why = reference["error"] if reference and "error" in reference else "see above"
        raise SpecError(f"MLflow did not take all of it ({why}); the same command goes on")
    return reference


def _content(
    spec: JobSpec,
    store: Store,
    plan: Plan,
    report: dict[str, Any],
    collected: CollectedLines,
    opener: StoreOpener,
    display: Display,
) -> PageContent:
    for line in read_lines(store):
        collected.add(line)
    collected.end()
    lines = [*collected.samples.picked()]
    traced = list(collected.traced.values())
    records = asked_of(
        Manifest(opener, spec), plan, {line["ordinal"] for line in [*lines, *traced]}
    )
    fetcher = make_fetcher(spec, opener, display.say)
    try:
        html = store.read(layout.REPORT_HTML).decode()
    except ObjectMissingError:
        html = ""
    return PageContent(
        report,
        html,
        collected,
        make_samples(lines, records, fetcher),
        traced_records(read_times(store), make_samples(traced, records, fetcher)),
        read_timeline(store, report["attempts"]),
        _evaluated(store, report),
    )


def _evaluated(store: Store, report: dict[str, Any]) -> Evaluated | None:
    """The evaluation that was a phase of the job; its table's pictures are not kept."""
    summary = report.get("evaluation")
    if summary is None:
        return None
    try:
        return Evaluated(summary, json.loads(store.read(layout.EVALUATION)))
    except ObjectMissingError:
        return None
