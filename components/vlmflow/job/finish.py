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
from vlmflow.job.errors import CountsError, ManifestError, TooManyFailuresError
from vlmflow.job.evaluator import Evaluator
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
from vlmflow.job.samples import SamplePicker, make_samples, prompt_text
from vlmflow.job.shard_run import open_log
from vlmflow.job.spec import JobSpec
from vlmflow.job.spent import time_working
from vlmflow.job.store import Store
from vlmflow.job.timeline import JobTimeline, lay_over
from vlmflow.job.tracked import JobTracker

_MAX_STEPS = 120  # of a plot's time


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
        tally, picker = self._write_views([_part_keys(group) for group in logs], manifest)
        report = self._report(tally, tracker) | {
            "generation": self._generations[-1].number,
            "generations": counts,
        }
        if self._evaluator is not None:
            evaluated = self._evaluator(self._store, report, fetcher)
            report["evaluation"] = evaluated.summary
            tracker.evaluated(evaluated)
        reason = failure_reason(report, self._spec)
        lines = list(picker.picked())
        records = self._records(manifest, report, lines)
        samples = make_samples(lines, records, fetcher)
        page = render_page(
            report,
            self._timeline(report),
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
        tracker.finish(report, page, samples, status="FINISHED" if reason is None else "FAILED")
        if reason is None:
            success = {
                "identity": self._identity.digest,
                "generation": report["generation"],
                "counts": report["counts"],
            }
            reached("success-due")
            self._store.write(layout.SUCCESS, layout.dump(success))
            reached("success-written")
        return report

    def _records(
        self, manifest: Manifest, report: dict[str, Any], lines: list[dict[str, Any]]
    ) -> dict[int, Record]:
        """What was asked of the samples and of the examples of failures, by ordinal."""
        ordinals = {line["ordinal"] for line in lines}
        ordinals |= {
            example["ordinal"]
            for failure in report["failures"].values()
            for example in failure["examples"]
        }
        try:
            return manifest.pick(self._plan, ordinals)
        except ManifestError:  # gone or changed by now: the answers are there all the same
            return {}

    def _timeline(self, report: dict[str, Any]) -> JobTimeline:
        timelines = (json.loads(self._store.read(k)) for k in self._store.list(layout.TIMELINES))
        return lay_over(timelines, time_working(report["attempts"]), max_steps=_MAX_STEPS)

    def _logs(self, generation: Generation) -> list[CommitLog]:
        return [open_log(self._store, generation, shard) for shard in generation.shards(self._plan)]

    def _write_views(
        self, part_keys: list[list[str]], manifest: Manifest
    ) -> tuple[Tally, SamplePicker]:
        tally, picker = Tally(), SamplePicker()
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
                picker.add(line)
                (failures if "error" in line else results).write(raw)
                others.add(line)
            results.close()
            failures.close()
            others.close()
        return tally, picker

    def _facts(self) -> JobFacts:
        job = read_json(self._store, layout.JOB)
        assert job is not None
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
