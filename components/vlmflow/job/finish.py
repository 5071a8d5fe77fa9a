"""The end of a job whose records are all committed: views, report, MLflow, _SUCCESS.json."""

import json
import tempfile
from pathlib import Path
from typing import Any

from vlmflow import __version__
from vlmflow.job import layout
from vlmflow.job.attempt_file import read_attempts
from vlmflow.job.commit_log import CommitLog
from vlmflow.job.crash_points import reached
from vlmflow.job.errors import CountsError, TooManyFailuresError
from vlmflow.job.generations import Generation
from vlmflow.job.job_file import Identity
from vlmflow.job.media import MediaFetcher
from vlmflow.job.plan import Plan
from vlmflow.job.report import Tally, make_report
from vlmflow.job.results import ResultsView, view_writers
from vlmflow.job.samples import Sample, SamplePicker
from vlmflow.job.shard_run import open_log
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store
from vlmflow.job.tracked import JobTracker


class Finisher:
    """Writes all that users read. May be repeated: it writes the same again."""

    def __init__(
        self,
        spec: JobSpec,
        store: Store,
        plan: Plan,
        identity: Identity,
        generations: list[Generation],
        *,
        create_is_atomic: bool,
    ) -> None:
        self._spec = spec
        self._store = store
        self._plan = plan
        self._identity = identity
        self._generations = generations
        self._create_is_atomic = create_is_atomic

    def finish(self, tracker: JobTracker, fetcher: MediaFetcher) -> dict[str, Any]:
        """Write the views and the report, end the MLflow run; return the report."""
        logs = [self._logs(generation) for generation in self._generations]
        counts = [
            _counts(generation, group)
            for generation, group in zip(self._generations, logs, strict=True)
        ]
        tally, picker = self._write_views([_part_keys(group) for group in logs])
        report = self._report(tally, tracker) | {
            "generation": self._generations[-1].number,
            "generations": counts,
        }
        self._store.write(layout.REPORT, layout.dump(report))
        reached("report-written")
        is_success = failure_reason(report, self._spec) is None
        samples = [Sample.of(line, fetcher) for line in picker.picked()]
        tracker.finish(report, samples, status="FINISHED" if is_success else "FAILED")
        if is_success:
            success = {
                "identity": self._identity.digest,
                "generation": report["generation"],
                "counts": report["counts"],
            }
            reached("success-due")
            self._store.write(layout.SUCCESS, layout.dump(success))
            reached("success-written")
        return report

    def _logs(self, generation: Generation) -> list[CommitLog]:
        return [open_log(self._store, generation, shard) for shard in generation.shards(self._plan)]

    def _write_views(self, part_keys: list[list[str]]) -> tuple[Tally, SamplePicker]:
        tally, picker = Tally(), SamplePicker()
        with tempfile.TemporaryDirectory(prefix="vlmflow-") as folder:
            view = ResultsView(self._store, part_keys, self._plan, Path(folder))
            results, failures = view_writers(self._store)
            for raw, line in view.lines():
                item = self._plan.set_aside.get(line["ordinal"])
                tally.add(line, is_skipped=item is not None and item.kind == "skipped")
                picker.add(line)
                (failures if "error" in line else results).write(raw)
            results.close()
            failures.close()
        return tally, picker

    def _report(self, tally: Tally, tracker: JobTracker) -> dict[str, Any]:
        attempts = read_attempts(self._store)
        for attempt in attempts:
            if attempt["status"] == "running":  # nobody runs any more: the logs are sealed
                attempt["status"] = "killed"
        return make_report(
            tally,
            job={
                "name": self._spec.name,
                "identity": self._identity.digest,
                "model": self._spec.model,
                "model_digest": self._identity.parts["model"],
                "version": __version__,
                "spec": json.loads(self._spec.canonical_json()),
            },
            manifest={
                "uri": self._spec.manifest,
                "sha256": self._plan.sha256,
                "num_bytes": self._plan.num_bytes,
                "records": self._plan.num_records,
            },
            attempts=attempts,
            store={"uri": self._store.uri, "create_is_atomic": self._create_is_atomic},
            results={
                "results": f"{self._store.uri}/{layout.RESULTS}",
                "failures": f"{self._store.uri}/{layout.FAILURES}",
                "report": f"{self._store.uri}/{layout.REPORT}",
            },
            mlflow=tracker.run_reference(),
        )


def failed_ordinals(store: Store, plan: Plan) -> list[int]:
    """The records of a finished job that were asked and failed, in rising order."""
    return [
        ordinal
        for key in store.list(layout.FAILURES)
        for line in store.read(key).splitlines()
        if (ordinal := json.loads(line)["ordinal"]) not in plan.set_aside
    ]


def _part_keys(logs: list[CommitLog]) -> list[str]:
    return [key for log in logs for key in log.part_keys()]


def _counts(generation: Generation, logs: list[CommitLog]) -> dict[str, int]:
    """Raises CountsError if what was asked is not what was answered."""
    counts = {
        "generation": generation.number,
        "asked": len(generation.asked),
        "succeeded": sum(log.state.num_succeeded for log in logs),
        "failed": sum(log.state.num_failed for log in logs),
    }
    if counts["asked"] != counts["succeeded"] + counts["failed"]:
        raise CountsError(f"the commits of a generation do not add up: {counts}")
    return counts


def failure_reason(report: dict[str, Any], spec: JobSpec) -> str | None:
    """Why a job whose records are all done counts as failed; None if it does not."""
    counts = report["counts"]
    if counts["succeeded"] == 0:
        return f"none of the {counts['records']} records succeeded"
    rate, allowed = counts["failed"] / counts["records"], spec.limits.max_failure_rate
    if rate > allowed:
        return (
            f"{counts['failed']} of {counts['records']} records failed, {rate:.1%}, "
            f"more than --max-failure-rate {allowed:.1%}"
        )
    return None


def check_failures(report: dict[str, Any], spec: JobSpec) -> None:
    """Raises TooManyFailuresError with the classes of failure."""
    reason = failure_reason(report, spec)
    if reason is not None:
        kinds = ", ".join(f"{name} {f['count']}" for name, f in report["failures"].items())
        raise TooManyFailuresError(f"{reason} ({kinds}); see {report['results']['failures']}")
