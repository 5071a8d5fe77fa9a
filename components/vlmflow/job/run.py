"""One attempt at a job: plan, identity, claim, loop, seal, report.

In this order things are written: plan.json, job.json, a claim, parts and commits, the seal, the
views, report.json, _SUCCESS.json. A kill at any point leaves an output that the same command
continues.
"""

import queue
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from vlmflow.job import layout
from vlmflow.job.claim import acquire_claim
from vlmflow.job.commit_log import CommitLog
from vlmflow.job.committer import Committer
from vlmflow.job.engine_process import EngineEvent, EngineProcess
from vlmflow.job.errors import EngineDiedError, InterruptedJobError, SpecError, StoreError
from vlmflow.job.finish import Finisher, check_failures
from vlmflow.job.identity import model_digest
from vlmflow.job.job_file import Identity, JobFile, read_json
from vlmflow.job.loop import Fetched, RecordLoop, StopSignal
from vlmflow.job.media import MediaFetcher
from vlmflow.job.plan import Manifest, Plan, find_plan, save_plan
from vlmflow.job.probe import create_is_atomic
from vlmflow.job.progress import Display, Progress
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store, StoreOpener
from vlmflow.job.throughput import Throughput
from vlmflow.job.tracked import JobTracker

_METRIC_SECONDS = 1.0
_MAX_STARTS = 3  # of an engine that dies before it is ready


class JobRun:
    """Carries a JobSpec out. `run` may be called once."""

    def __init__(self, spec: JobSpec, *, display: Display, stop: StopSignal) -> None:
        self._spec = spec
        self._display = display
        self._stop = stop
        opener = StoreOpener(spec.endpoint_url, max_connections=spec.limits.num_fetchers + 8)
        self._store: Store = opener.open(f"{spec.output.rstrip('/')}/{spec.name}")
        self._manifest = Manifest(opener, spec.manifest, spec.limit)
        self._fetcher = MediaFetcher(
            opener, spec.manifest, max_image_bytes=spec.limits.max_image_bytes
        )
        self._events: queue.SimpleQueue[EngineEvent | Fetched] = queue.SimpleQueue()
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._engine: EngineProcess | None = None
        self._tracker: JobTracker | None = None

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
        check_failures(report, self._spec)
        return report

    def _run(self) -> dict[str, Any]:
        job_file = JobFile(self._store, self._spec)
        there = job_file.read()
        self._manifest.etag()  # a typo is told before a model is read or loaded
        digest = model_digest(self._spec.model)
        if there is None:
            # A fresh job will need the engine; let it load while the manifest is read.
            self._start_engine(self._spec.engine.dtype)
            plan = self._plan()
            identity = job_file.create(plan, digest, self._wait_until_ready()["dtype"])
        else:
            plan = self._plan()
            identity = job_file.check(there, plan, digest)
            report = read_json(self._store, layout.REPORT)
            if report is not None and read_json(self._store, layout.SUCCESS) is not None:
                self._display.say(f"{self._store.uri}: this job is complete already")
                return report
        save_plan(self._store, plan, self._spec.manifest)
        return self._work(plan, identity, digest)

    def _plan(self) -> Plan:
        plan = find_plan(self._store, self._manifest)
        self._display.say(
            f"{self._spec.manifest}: {plan.num_records} records, {len(plan.set_aside)} set aside"
        )
        return plan

    def _work(self, plan: Plan, identity: Identity, digest: str) -> dict[str, Any]:
        """Do what is left, under a claim."""
        is_atomic = create_is_atomic(self._store)
        if not is_atomic:
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
            progress = _ProgressFile(self._store, claim.epoch, self._started_at, self._started)
            throughput = Throughput(
                num_before=len(log.state.committed) + len(plan.set_aside),
                num_failed_before=log.state.num_failed + plan.num_bad,
            )
            if len(log.state.committed) < plan.num_to_ask:
                if self._engine is None:
                    self._start_engine(identity.dtype)
                self._wait_until_ready()
                assert self._engine is not None
                self._tracker.engine_ready(self._engine.info)
                throughput.started = time.monotonic()
                progress.engine_info = self._engine.info
                progress.write(throughput, "running")
                committer = Committer(
                    log,
                    claim,
                    self._spec.limits,
                    lambda: progress.write(throughput, "running"),
                )
                if not self._ask_all(plan, log, committer, throughput):
                    progress.write(throughput, "interrupted")
                    raise InterruptedJobError(
                        f"stopped with {throughput.num_done} of {plan.num_records} records done; "
                        "the same command goes on"
                    )
            log.seal()
            progress.write(throughput, "complete")
            finisher = Finisher(self._spec, self._store, plan, identity, create_is_atomic=is_atomic)
            report = finisher.finish(log, self._tracker, self._fetcher)
            self._tracker = None
            return report
        finally:
            with suppress(StoreError):  # the next worker waits out the lease then
                claim.release()

    def _ask_all(
        self, plan: Plan, log: CommitLog, committer: Committer, throughput: Throughput
    ) -> bool:
        """Run the loop over the records that are not committed; False if told to stop."""
        tracker, engine = self._tracker, self._engine
        assert tracker is not None and engine is not None
        before = log.state.committed.copy()
        last_metrics = time.monotonic()

        def tick() -> None:
            nonlocal last_metrics
            now = time.monotonic()
            if now - last_metrics >= _METRIC_SECONDS:
                last_metrics = now
                tracker.log_step(throughput.num_done, throughput.metrics())
                self._show(plan, throughput)

        loop = RecordLoop(
            self._spec,
            (r for r in self._manifest.records(plan) if r.ordinal not in before),
            fetcher=self._fetcher,
            engine=engine,
            events=self._events,
            committer=committer,
            throughput=throughput,
            stop=self._stop,
            on_tick=tick,
            tell=self._display.say,
        )
        committer.start()
        try:
            return loop.run()
        finally:
            # Whatever ended the loop: what has its outcome is committed.
            committer.close()
            tracker.log_step(throughput.num_done, throughput.metrics())
            self._show(plan, throughput)

    def _start_engine(self, dtype: str) -> None:
        config = asdict(self._spec.engine) | {"dtype": dtype}
        self._engine = EngineProcess(self._spec.model, config, self._events.put)
        self._engine.start()

    def _wait_until_ready(self) -> dict[str, Any]:
        """Wait for the engine. Raises SpecError, EngineDiedError or InterruptedJobError."""
        engine = self._engine
        assert engine is not None
        while engine.num_credits == 0:
            if self._stop.count:
                raise InterruptedJobError("told to stop before the first record")
            try:
                event = self._events.get(timeout=0.2)
            except queue.Empty:
                continue
            assert isinstance(event, EngineEvent)
            if event.incarnation == engine.incarnation:
                self._engine_loads(engine, event.frame)
        return engine.info

    def _engine_loads(self, engine: EngineProcess, frame: dict[str, Any] | None) -> None:
        """Take an event of an engine that is not ready yet."""
        if frame is None:
            how = engine.exit_description()
            if engine.incarnation >= _MAX_STARTS:
                raise EngineDiedError(f"the engine died while it loaded the model ({how})")
            self._display.say(f"the engine died while it loaded the model ({how}); once more")
            engine.start()
            return
        engine.heard(frame)
        if frame["type"] == "failed":
            raise SpecError(frame["message"])
        if frame["type"] == "ready":
            info = frame["info"]
            bits = info["quant_policy"]
            self._display.say(
                f"engine: {info['device']}, {info['dtype']}, {info['attention_backend']} "
                f"attention, batch {info['max_batch_size']}, "
                f"{info['kv_cache_bytes'] / 2**20:,.0f} MiB KV cache"
                + (f" of {bits} bits" if bits else "")
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


class _ProgressFile:
    """This attempt's object below `_work/progress/`: alive while it runs, history afterwards."""

    def __init__(self, store: Store, epoch: int, started_at: datetime, started: float) -> None:
        self._store = store
        self._epoch = epoch
        self._started_at = started_at
        self._started = started
        self.engine_info: dict[str, Any] = {}

    def write(self, throughput: Throughput, status: str) -> None:
        content = {
            "attempt": self._epoch,
            "status": status,
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "startup_seconds": round(throughput.started - self._started, 3),
            "engine_info": self.engine_info,
            **throughput.as_dict(),
        }
        self._store.write(f"{layout.PROGRESS}{self._epoch:06d}.json", layout.dump(content))
