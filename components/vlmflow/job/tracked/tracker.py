"""`JobTracker`: what a job tells MLflow while it runs. Nothing here waits for a tracking server."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vlmflow.job import layout
from vlmflow.job.errors import StoreError
from vlmflow.job.plan import Plan, Shard
from vlmflow.job.progress_file import is_working, read_attempts
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store
from vlmflow.job.store.locate import without_query, without_secrets_of
from vlmflow.job.tracked.description import JOB_PART, TrackedJob, describe_part, engine_params
from vlmflow.job.tracked.page import PageContent, RunPage
from vlmflow.job.tracked.registers import StoreRegister, remember_attached
from vlmflow.tracking.reason import reason_of
from vlmflow.tracking.session import TrackingSession
from vlmflow.tracking.spool import Spool
from vlmflow.tracking.system_metrics import SystemSampler, gpu_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from vlmflow.tracking.mlflow_run import MlflowRun

_FAIL_SECONDS = 10.0  # for the run of a job that is being stopped: whoever stops it waits


class JobTracker:
    """The job's MLflow runs, as one process writes to them. With tracking off it does nothing.

    A job in one shard has one run. One in several has a run of its own for the sums, which whoever
    finishes it fills, and below it a run for each shard, with what its workers measured.
    """

    def __init__(
        self,
        spec: JobSpec,
        store: Store,
        identity: str,
        plan: Plan,
        model_digest: str,
        *,
        tell: Callable[[str], None],
        attached: str | None = None,
    ) -> None:
        """`attached` is a run that was handed to us; None: the environment says."""
        self._job = TrackedJob(spec, store, identity, plan, model_digest)
        self._tell = tell
        self._attached = attached or os.environ.get("MLFLOW_RUN_ID") or None
        self._is_enabled = spec.tracking.enabled
        self._is_closed = False
        self._left_seconds = spec.tracking.end_seconds  # that the end may still wait
        self._error: str | None = None
        self._part = JOB_PART  # whose run metrics go to now
        self._client: MlflowClient | None = None
        moment = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"
        self._session = TrackingSession(
            self._open,
            lambda part: Spool(store, f"{layout.SPOOL}{part}/", moment),
            self._report_error,
        )
        self._sampler = SystemSampler(self._add_system_metrics)

    def start(self) -> None:
        """Open the run, on the side."""
        if self._is_enabled:
            self._session.start()
            self._session.call(JOB_PART, lambda run: None)

    def begin_shard(self, shard: Shard) -> None:
        """Let what follows be the shard's."""
        self._part = self._job.part_of(shard)
        self._sampler.node = f"shard-{shard.number:05d}"
        if self._is_enabled and self._part != JOB_PART:
            self._session.call(self._part, lambda run: None)

    def engine_ready(self, info: dict[str, Any]) -> None:
        """Log what the engine resolved, and begin to watch the machine."""
        if self._is_enabled:
            self._with_run(lambda run: run.log_params(engine_params(info)))
            self._with_run(lambda run: run.set_tags(gpu_tags()))
            self._sampler.start()

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Log throughput; the step is the number of records done."""
        if self._is_enabled:
            self._sampler.step = step
            self._session.add_points(self._part, step, metrics)

    def end_shard(self) -> None:
        """The shard is sealed: its run ends. A job's only run goes on until the job is done."""
        self._sampler.stop()
        if self._is_enabled and self._part != JOB_PART:
            self._session.replay(self._part)
            self._with_run(lambda run: run.end("FINISHED"))
        self._part = JOB_PART

    def run_reference(self) -> dict[str, Any] | None:
        """Where the run is, for the report; None without one."""
        if not self._is_enabled:
            return None
        if not self._is_closed:
            self._wait(self._session.drain)
        run = self._session.opened(JOB_PART)
        if run is None:
            return {"error": self._error or "the tracking server did not answer in time"}
        return {
            "tracking_uri": without_query(run.tracking_uri),
            "experiment_id": run.experiment_id,
            "run_id": run.run_id,
        }

    def finish(self, content: PageContent | None, *, status: str) -> bool:
        """Fill the run's page and end the run, waiting a while; False if something is lacking.

        Without content, of a job that is not done, only what was spooled is sent.
        """
        self._sampler.stop()
        if not self._is_enabled:
            return True
        self._session.begin_page()
        parts = [self._job.part_of(shard) for shard in self._job.plan.shards]
        for part in dict.fromkeys([*parts, JOB_PART]):
            # A shard's run is looked for only where there is something to send.
            if part == JOB_PART or next(self._job.store.list(f"{layout.SPOOL}{part}/"), None):
                self._session.replay(part)
        with RunPage(self._job, content) if content is not None else nullcontext() as page:
            for step in page.steps() if page is not None else ():
                self._session.call(JOB_PART, step)
            self._session.call(JOB_PART, lambda run: run.end(status))
            is_complete = self._close()
        if is_complete:
            self._job.store.delete(layout.UNLOGGED)
        else:
            self._leave_word(status)
        return is_complete

    def fail(self, status: str) -> None:
        """End the run of a job that did not come to its end: FAILED or KILLED."""
        self._sampler.stop()
        if not self._is_enabled or self._is_closed:
            return
        self._left_seconds = min(self._left_seconds, _FAIL_SECONDS)
        self._with_run(lambda run: run.end(status))
        if self._part != JOB_PART and not self._others_work():
            self._session.call(JOB_PART, lambda run: run.end(status))
        with suppress(StoreError):  # the first error is the one to tell
            if not self._close():
                self._leave_word(status)

    def leave(self) -> None:
        """Let go of the runs, which others will end. Harmless when they are ended already."""
        self._sampler.stop()
        if self._is_enabled and not self._is_closed:
            self._close()

    def _with_run(self, call: "Callable[[MlflowRun], None]") -> None:
        self._session.call(self._part, call)

    def _add_system_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self._session.add_points(self._part, step, metrics)

    def _open(self, part: str) -> "MlflowRun":
        """Open a run, on the side thread."""
        # Loading MLflow takes seconds; here they are nobody's.
        from vlmflow.tracking.lifecycle import connect, open_run

        if self._client is None:
            self._client = connect(self._job.spec.tracking.uri)
        is_job = part == JOB_PART
        run = open_run(
            self._client,
            describe_part(self._job, part),
            StoreRegister(self._job.store, part),
            attached=self._attached if is_job else None,
            parent=None if is_job else self._session.open(JOB_PART),
        )
        if not run.is_ours:
            remember_attached(self._job.store, run)
        return run

    def _others_work(self) -> bool:
        """Whether a shard of this job is somebody's now."""
        now = datetime.now(UTC)
        try:
            return any(is_working(attempt, now) for attempt in read_attempts(self._job.store))
        except StoreError:
            return True  # the run goes on: whoever finishes the job ends it

    def _report_error(self, error: Exception) -> None:
        """Tell the first failure; a server that is down would repeat it every minute."""
        if self._error is None:
            reason = reason_of(error)
            for uri in (self._job.spec.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI")):
                reason = without_secrets_of(uri or "", reason)
            self._error = reason
            self._tell(f"MLflow: {self._error}; the job goes on without it")

    def _wait(self, wait: Callable[[float], bool]) -> bool:
        """Wait no longer than is left of what the job's end may wait in all."""
        start = time.monotonic()
        is_done = wait(self._left_seconds)
        self._left_seconds -= time.monotonic() - start
        return is_done

    def _close(self) -> bool:
        self._is_closed = True
        return self._wait(lambda seconds: self._session.close(time.monotonic() + seconds))

    def _leave_word(self, status: str) -> None:
        self._job.store.write(layout.UNLOGGED, layout.dump({"status": status}))
        self._tell(
            "MLflow has not all of this job; `vlmflow track --replay "
            f"{self._job.store.uri}` sends what is lacking"
        )
