"""One attempt at a job: plan, identity, claim, loop, seal, report.

In this order things are written: plan.json, job.json, a claim, parts and commits, the seal, the
views, report.json, _SUCCESS.json. A kill at any point leaves an output that the same command
continues.
"""

import json
import queue
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmflow import __version__
from vlmflow.job import layout
from vlmflow.job.claim import Claim, acquire_claim
from vlmflow.job.commit_log import CommitLog
from vlmflow.job.committer import Committer
from vlmflow.job.engine_process import EngineEvent, EngineProcess
from vlmflow.job.errors import (
    EngineDiedError,
    IdentityError,
    InterruptedJobError,
    SpecError,
    TooManyFailuresError,
)
from vlmflow.job.identity import (
    describe_difference,
    identity_digest,
    identity_parts,
    model_digest,
)
from vlmflow.job.loop import Fetched, RecordLoop, StopSignal
from vlmflow.job.media import MediaFetcher
from vlmflow.job.plan import Manifest, Plan, find_plan, save_plan
from vlmflow.job.probe import create_is_atomic
from vlmflow.job.progress import Display, Progress
from vlmflow.job.report import Tally, make_report
from vlmflow.job.results import ResultsView, view_writers
from vlmflow.job.samples import Sample, SamplePicker
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import ObjectMissingError, Store, StoreOpener
from vlmflow.job.throughput import Throughput
from vlmflow.job.tracked import JobTracker

_METRIC_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What `job.json` says of the job."""

    parts: dict[str, Any]
    dtype: str

    @property
    def digest(self) -> str:
        return identity_digest(self.parts)


class JobRun:
    """Carries a JobSpec out. `run` may be called once."""

    def __init__(self, spec: JobSpec, *, display: Display, stop: StopSignal) -> None:
        self._spec = spec
        self._display = display
        self._stop = stop
        self._opener = StoreOpener(spec.endpoint_url, max_connections=spec.limits.num_fetchers + 8)
        self._store: Store = self._opener.open(f"{spec.output.rstrip('/')}/{spec.name}")
        self._manifest = Manifest(self._opener, spec.manifest, spec.limit)
        self._events: queue.SimpleQueue[EngineEvent | Fetched] = queue.SimpleQueue()
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._is_atomic: bool | None = None
        self._engine: EngineProcess | None = None
        self._tracker: JobTracker | None = None
        self._fetcher = MediaFetcher(
            self._opener, spec.manifest, max_image_bytes=spec.limits.max_image_bytes
        )

    def run(self) -> dict[str, Any]:
        """Run the job to its end and return its report.

        Raises a JobError with the exit code when it does not come to its end.
        """
        try:
            report = self._run()
        except BaseException as error:
            if self._tracker is not None:
                is_stopped = isinstance(error, InterruptedJobError)
                self._tracker.fail("KILLED" if is_stopped else "FAILED")
            raise
        finally:
            if self._engine is not None:
                self._engine.stop()
        self._check_failures(report)
        return report

    def _run(self) -> dict[str, Any]:
        there = self._read_json(layout.JOB)
        if there is None:
            self._manifest.etag()  # before a model is loaded for nothing
            digest = model_digest(self._spec.model)
            self._start_engine(self._spec.engine.dtype)
            plan = self._plan()
            identity = self._new_identity(plan, digest)
        else:
            digest = model_digest(self._spec.model)
            plan = self._plan()
            identity = self._check_identity(there, plan, digest)
            report = self._read_json(layout.REPORT)
            if report is not None and self._read_json(layout.SUCCESS) is not None:
                self._display.say(f"{self._store.uri}: this job is complete already")
                return report
        save_plan(self._store, plan, self._spec.manifest)
        self._is_atomic = create_is_atomic(self._store)
        if not self._is_atomic:
            self._display.say(
                f"{self._store.uri}: creating an object is not atomic on this store; make sure "
                "that no second worker runs this job"
            )
        claim = acquire_claim(self._store, layout.SHARD, tell=self._display.say)
        try:
            log = CommitLog(
                self._store, layout.SHARD, num_records=plan.num_records, epoch=claim.epoch
            )
            log.load()
            self._tracker = JobTracker(
                self._spec, self._store, identity.digest, plan, digest, tell=self._display.say
            )
            self._tracker.start()
            throughput = self._throughput(plan, log)
            if len(log.state.committed) < plan.num_to_ask:
                if self._engine is None:
                    self._start_engine(identity.dtype)
                self._ask_all(plan, log, claim, throughput)
            log.seal()
            self._write_progress(claim.epoch, throughput, "complete")
            return self._finish(plan, log, identity)
        finally:
            claim.release()

    def _plan(self) -> Plan:
        plan = find_plan(self._store, self._manifest)
        self._display.say(
            f"{self._spec.manifest}: {plan.num_records} records, {len(plan.set_aside)} set aside"
        )
        return plan

    def _new_identity(self, plan: Plan, digest: str) -> Identity:
        """Create job.json once the engine has resolved what `auto` means here."""
        info = self._wait_until_ready()
        parts = identity_parts(
            self._spec, manifest_digest=plan.sha256, model_digest=digest, dtype=info["dtype"]
        )
        identity = Identity(parts, info["dtype"])
        content = {
            "identity": identity.digest,
            "identity_parts": parts,
            "resolved": {"dtype": identity.dtype},
            "spec": json.loads(self._spec.canonical_json()),
            "version": __version__,
            "created_at": _iso(self._started_at),
        }
        if not self._store.create(layout.JOB, layout.dump(content)):
            there = self._read_json(layout.JOB)
            assert there is not None
            return self._check_identity(there, plan, digest)
        return identity

    def _check_identity(self, there: dict[str, Any], plan: Plan, digest: str) -> Identity:
        """Raises IdentityError if the output belongs to a job of another identity."""
        asked = self._spec.engine.dtype
        dtype = there["resolved"]["dtype"] if asked == "auto" else asked
        parts = identity_parts(
            self._spec, manifest_digest=plan.sha256, model_digest=digest, dtype=dtype
        )
        if parts != there["identity_parts"]:
            difference = describe_difference(parts, there["identity_parts"])
            raise IdentityError(
                f"{self._store.uri} belongs to another job ({difference}); "
                "give another --name or --output, or the old options to go on with it"
            )
        return Identity(parts, dtype)

    def _start_engine(self, dtype: str) -> None:
        config = asdict(self._spec.engine) | {"dtype": dtype}
        self._engine = EngineProcess(self._spec.model, config, self._events.put)
        self._engine.start()

    def _wait_until_ready(self) -> dict[str, Any]:
        """Wait for the engine. Raises SpecError, EngineDiedError or InterruptedJobError."""
        engine = self._engine
        assert engine is not None
        if engine.is_ready:
            return engine.info
        while not engine.is_ready:
            if self._stop.count:
                raise InterruptedJobError("told to stop before the first record")
            try:
                event = self._events.get(timeout=0.2)
            except queue.Empty:
                continue
            assert isinstance(event, EngineEvent)
            if event.frame is None:
                raise EngineDiedError(
                    f"the engine died while it loaded the model ({engine.exit_description()})"
                )
            engine.heard(event.frame)
            if event.frame["type"] == "failed":
                raise SpecError(event.frame["message"])
        info = engine.info
        self._display.say(
            f"engine: {info['device']}, {info['dtype']}, {info['attention_backend']} attention, "
            f"batch {info['max_batch_size']}, {info['kv_cache_bytes'] / 2**20:,.0f} MiB KV cache"
        )
        return info

    def _throughput(self, plan: Plan, log: CommitLog) -> Throughput:
        failed_before = log.state.num_failed + sum(
            item.kind == "failed" for item in plan.set_aside.values()
        )
        return Throughput(
            num_before=len(log.state.committed) + len(plan.set_aside),
            num_failed_before=failed_before,
        )

    def _ask_all(self, plan: Plan, log: CommitLog, claim: Claim, throughput: Throughput) -> None:
        """Run the loop over all records that are not committed yet."""
        assert self._engine is not None and self._tracker is not None
        self._wait_until_ready()
        self._tracker.engine_ready(self._engine.info)
        throughput.started = time.monotonic()
        done_before = set(log.state.committed) if len(log.state.committed) else set()
        records = (r for r in self._manifest.records(plan) if r.ordinal not in done_before)
        committer = Committer(
            log,
            claim,
            self._spec.limits,
            lambda: self._write_progress(claim.epoch, throughput, "running"),
        )
        committer.start()
        last_metrics = time.monotonic()

        def tick() -> None:
            nonlocal last_metrics
            now = time.monotonic()
            if now - last_metrics < _METRIC_SECONDS:
                return
            last_metrics = now
            assert self._tracker is not None
            self._tracker.log_step(throughput.num_done, throughput.metrics())
            self._show(plan, throughput)

        loop = RecordLoop(
            self._spec,
            records,
            fetcher=self._fetcher,
            engine=self._engine,
            events=self._events,
            committer=committer,
            throughput=throughput,
            stop=self._stop,
            on_tick=tick,
            tell=self._display.say,
        )
        try:
            is_complete = loop.run()
        finally:
            # Whatever ended the loop: what has its outcome is committed.
            committer.close()
            self._show(plan, throughput)
        self._tracker.log_step(throughput.num_done, throughput.metrics())
        if not is_complete:
            self._write_progress(claim.epoch, throughput, "interrupted")
            raise InterruptedJobError(
                f"stopped with {throughput.num_done} of {plan.num_records} records done; "
                "the same command goes on"
            )

    def _show(self, plan: Plan, throughput: Throughput) -> None:
        self._display.show(
            Progress(
                num_records=plan.num_records,
                num_done=throughput.num_done,
                num_failed=throughput.num_failed_before + throughput.num_failed,
                records_per_second=throughput.records_per_second,
            )
        )

    def _write_progress(self, epoch: int, throughput: Throughput, status: str) -> None:
        engine = self._engine.info if self._engine is not None else {}
        content = {
            "attempt": epoch,
            "status": status,
            "started_at": _iso(self._started_at),
            "updated_at": _iso(datetime.now(UTC)),
            "startup_seconds": round(throughput.started - self._started, 3),
            "engine_info": engine,
            **throughput.as_dict(),
        }
        self._store.write(f"{layout.PROGRESS}{epoch:06d}.json", layout.dump(content))

    def _finish(self, plan: Plan, log: CommitLog, identity: Identity) -> dict[str, Any]:
        """Write views, report and _SUCCESS, and end the MLflow run."""
        assert self._tracker is not None
        tally, picker = Tally(), SamplePicker()
        with tempfile.TemporaryDirectory(prefix="vlmflow-") as folder:
            view = ResultsView(self._store, log, plan, Path(folder))
            results, failures = view_writers(self._store)
            for raw, line in view.lines():
                item = plan.set_aside.get(line["ordinal"])
                tally.add(line, is_skipped=item is not None and item.kind == "skipped")
                (failures if "error" in line else results).write(raw)
                picker.add(line)
            results.flush()
            failures.flush()
        report = self._make_report(tally, plan, identity)
        self._store.write(layout.REPORT, layout.dump(report))
        samples = [Sample.of(line, self._fetcher) for line in picker.picked()]
        is_success = self._failure_reason(report) is None
        self._tracker.finish(report, samples, status="FINISHED" if is_success else "FAILED")
        self._tracker = None
        if is_success:
            success = {"identity": identity.digest, "counts": report["counts"]}
            self._store.write(layout.SUCCESS, layout.dump(success))
        return report

    def _make_report(self, tally: Tally, plan: Plan, identity: Identity) -> dict[str, Any]:
        assert self._tracker is not None
        attempts = [json.loads(self._store.read(key)) for key in self._store.list(layout.PROGRESS)]
        return make_report(
            tally,
            job={
                "name": self._spec.name,
                "identity": identity.digest,
                "model": self._spec.model,
                "model_digest": identity.parts["model"],
                "version": __version__,
                "spec": json.loads(self._spec.canonical_json()),
            },
            manifest={
                "uri": self._spec.manifest,
                "sha256": plan.sha256,
                "num_bytes": plan.num_bytes,
                "records": plan.num_records,
            },
            engine=attempts[-1]["engine_info"] if attempts else {},
            attempts=attempts,
            store={"uri": self._store.uri, "create_is_atomic": self._is_atomic},
            results={
                "results": f"{self._store.uri}/{layout.RESULTS}",
                "failures": f"{self._store.uri}/{layout.FAILURES}",
                "report": f"{self._store.uri}/{layout.REPORT}",
            },
            mlflow=self._tracker.run_reference(),
        )

    def _failure_reason(self, report: dict[str, Any]) -> str | None:
        counts = report["counts"]
        if counts["succeeded"] == 0:
            return f"none of the {counts['records']} records succeeded"
        rate, allowed = counts["failed"] / counts["records"], self._spec.limits.max_failure_rate
        if rate > allowed:
            return (
                f"{counts['failed']} of {counts['records']} records failed, {rate:.1%}, "
                f"more than --max-failure-rate {allowed:.1%}"
            )
        return None

    def _check_failures(self, report: dict[str, Any]) -> None:
        reason = self._failure_reason(report)
        if reason is not None:
            kinds = ", ".join(f"{n} {f['count']}" for n, f in report["failures"].items())
            raise TooManyFailuresError(f"{reason} ({kinds}); see {report['results']['failures']}")

    def _read_json(self, key: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(self._store.read(key))
        except ObjectMissingError:
            return None
        return content


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
