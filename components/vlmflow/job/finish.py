"""The end of a job whose records are all committed: views, report, MLflow, _SUCCESS.json."""

import json
import tempfile
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

from vlmflow import __version__
from vlmflow.job import layout
from vlmflow.job.commit_log import CommitLog
from vlmflow.job.crash_points import reached
from vlmflow.job.dialects.job_facts import JobFacts
from vlmflow.job.errors import CountsError, TooManyFailuresError
from vlmflow.job.evaluator import Evaluated, Evaluator
from vlmflow.job.finished import asked_of, read_timeline
from vlmflow.job.generations import Generation
from vlmflow.job.job_file import Identity, read_json
from vlmflow.job.manifest import Manifest
from vlmflow.job.media import MediaFetcher
from vlmflow.job.output_dialects import OutputDialects
from vlmflow.job.plan import Plan
from vlmflow.job.progress_file import read_attempts, write_progress
from vlmflow.job.record import Record
from vlmflow.job.report import Tally, make_report
from vlmflow.job.report_page import Failed, render_page
from vlmflow.job.results import ResultsView, view_writers
from vlmflow.job.samples import make_samples, prompt_text
from vlmflow.job.shard_log import open_log
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store
from vlmflow.job.tracked import (
    CollectedLines,
    JobTracker,
    PageContent,
    read_times,
    traced_records,
)


class Finisher:
    """Writes all that users read. May be repeated: it writes the same again, but for the time."""

    def __init__(
        self,
        spec: JobSpec,
        store: Store,
        plan: Plan,
        identity: Identity,
        generations: list[Generation],
        *,
        create_is_atomic: bool,
        evaluator: Evaluator | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._spec = spec
        self._store = store
        self._plan = plan
        self._identity = identity
        self._generations = generations
        self._create_is_atomic = create_is_atomic

    def finish(
        self, tracker: JobTracker, fetcher: MediaFetcher, manifest: Manifest
    ) -> dict[str, Any]:
        """Write the views and the report, end the MLflow run; return the report."""
        logs = [self._logs(generation) for generation in self._generations]
        counts = [
            _counts(generation, group)
            for generation, group in zip(self._generations, logs, strict=True)
        ]
        times = read_times(self._store) if self._spec.tracking.enabled else {}
        with CollectedLines(self._spec.tracking, times) as collected:
            tally = self._write_views([_part_keys(group) for group in logs], manifest, collected)
            report = self._report(tally, tracker) | {
                "generation": self._generations[-1].number,
                "generations": counts,
            }
            evaluated = None
            if self._evaluator is not None:
                evaluated = self._evaluator(self._store, report, fetcher)
                report["evaluation"] = evaluated.summary
            self._show(report, collected, times, tracker, fetcher, manifest, evaluated)
        if failure_reason(report, self._spec) is None:
            success = {
                "identity": self._identity.digest,
                "generation": report["generation"],
                "counts": report["counts"],
            }
            reached("success-due")
            self._store.write(layout.SUCCESS, layout.dump(success))
            reached("success-written")
        return report

    def _show(
        self,
        report: dict[str, Any],
        collected: CollectedLines,
        times: dict[int, dict[str, Any]],
        tracker: JobTracker,
        fetcher: MediaFetcher,
        manifest: Manifest,
        evaluated: Evaluated | None,
    ) -> None:
        """Write the report and the MLflow run's page."""
        reason = failure_reason(report, self._spec)
        lines, traced = list(collected.samples.picked()), list(collected.traced.values())
        ordinals = {line["ordinal"] for line in [*lines, *traced]}
        ordinals |= {
            example["ordinal"]
            for failure in report["failures"].values()
            for example in failure["examples"]
        }
        records = asked_of(manifest, self._plan, ordinals)
        samples = make_samples(lines, records, fetcher)
        timeline = read_timeline(self._store, report["attempts"])
        page = render_page(
            report,
            timeline,
            samples,
            _failed(report, records),
            failure_reason=reason,
        )
        self._store.write(layout.REPORT_HTML, page.encode())
        self._store.write(layout.REPORT, layout.dump(report))
        reached("report-written")
        write_progress(
            self._store,
            self._plan,
            self._generations[-1],
            status="complete" if reason is None else "failed",
            is_final=True,
        )
        shown = traced_records(times, make_samples(traced, records, fetcher))
        tracker.finish(
            PageContent(report, page, collected, samples, shown, timeline, evaluated),
            status="FINISHED" if reason is None else "FAILED",
        )

    def _logs(self, generation: Generation) -> list[CommitLog]:
        return [open_log(self._store, generation, shard) for shard in generation.shards(self._plan)]

    def _write_views(
        self, part_keys: list[list[str]], manifest: Manifest, collected: CollectedLines
    ) -> Tally:
        tally = Tally()
        with tempfile.TemporaryDirectory(prefix="vlmflow-") as folder:
            view = ResultsView(self._store, part_keys, self._plan, Path(folder))
            results, failures = view_writers(self._store)
            others = OutputDialects(
                self._spec.output_dialects,
                self._store,
                manifest,
                self._plan,
                self._facts(),
                Path(folder),
            )
            for raw, line in view.lines():
                item = self._plan.set_aside.get(line["ordinal"])
                tally.add(line, is_skipped=item is not None and item.kind == "skipped")
                collected.add(line)
                (failures if "error" in line else results).write(raw)
                others.add(line)
            results.close()
            failures.close()
            others.close()
        collected.end()
        self._store.write(layout.VIEWS, layout.dump(results.files | failures.files))
        return tally

    def _job_file(self) -> dict[str, Any]:
        job = read_json(self._store, layout.JOB)
        assert job is not None
        return job

    def _facts(self) -> JobFacts:
        job = self._job_file()
        created = datetime.fromisoformat(job["created_at"])
        model = PurePath(self._spec.model).name
        return JobFacts(self._identity.digest, model, int(created.timestamp()))

    def _places(self) -> dict[str, str]:
        """Where what users read is."""
        names = {
            "results": layout.RESULTS,
            "failures": layout.FAILURES,
            "report": layout.REPORT,
            "report_html": layout.REPORT_HTML,
        }
        if self._spec.output_dialects:
            names["outputs"] = layout.OUTPUTS
        return {name: f"{self._store.uri}/{key}" for name, key in names.items()}

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
                "registered_model": self._job_file()["resolved"].get("registered_model"),
                "version": __version__,
                "spec": self._spec.public_values(),
            },
            manifest={
                "uri": self._spec.manifest,
                "sha256": self._plan.sha256,
                "num_bytes": self._plan.num_bytes,
                "records": self._plan.num_records,
            },
            attempts=attempts,
            store={"uri": self._store.uri, "create_is_atomic": self._create_is_atomic},
            results=self._places(),
            mlflow=tracker.run_reference(),
            price_per_hour=self._spec.price_per_hour,
        )


def failed_ordinals(store: Store, plan: Plan) -> list[int]:
    """The records of a finished job that were asked and failed, in rising order."""
    return [
        ordinal
        for key in store.list(layout.FAILURES)
        for line in store.read(key).splitlines()
        if (ordinal := json.loads(line)["ordinal"]) not in plan.set_aside
    ]


def _failed(report: dict[str, Any], records: dict[int, Record]) -> list[Failed]:
    """The examples of failures, with what was asked where that can be told."""
    return [
        Failed(name, example, prompt_text(record.prompt) if record is not None else None)
        for name, failure in report["failures"].items()
        for example in failure["examples"]
        for record in [records.get(example["ordinal"])]
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
