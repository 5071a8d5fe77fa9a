"""One worker's time on one shard: ask what is not committed, commit it, seal the log."""

import time
from collections.abc import Iterator
from contextlib import suppress

from vlmflow.job.attempt_file import AttemptFile
from vlmflow.job.claim import Claim
from vlmflow.job.committer import Committer
from vlmflow.job.crash_points import reached
from vlmflow.job.errors import (
    CountsError,
    InterruptedJobError,
    StoreError,
)
from vlmflow.job.generations import Generation
from vlmflow.job.job_engine import JobEngine
from vlmflow.job.loop import RecordLoop, StopSignal
from vlmflow.job.manifest import Manifest
from vlmflow.job.media import MediaFetcher
from vlmflow.job.plan import Plan, Shard
from vlmflow.job.progress import Display, Progress
from vlmflow.job.progress_file import status_after
from vlmflow.job.record import Record
from vlmflow.job.record_times import RecordTimes
from vlmflow.job.shard_log import open_log
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store
from vlmflow.job.throughput import Throughput
from vlmflow.job.tracked import JobTracker

_METRIC_SECONDS = 1.0


class ShardRun:
    """Works on a shard under a claim that is ours. `run` may be called once."""

    def __init__(
        self,
        spec: JobSpec,
        store: Store,
        plan: Plan,
        generation: Generation,
        shard: Shard,
        claim: Claim,
        *,
        display: Display,
        stop: StopSignal,
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._generation = generation
        self._shard = shard
        self._display = display
        self._stop = stop
        self._log = open_log(store, generation, shard, epoch=claim.epoch)
        self._attempt = AttemptFile(store, plan, generation, shard, epoch=claim.epoch)

    def run(
        self,
        manifest: Manifest,
        fetcher: MediaFetcher,
        engine: JobEngine,
        dtype: str,
        tracker: JobTracker | None,
    ) -> None:
        """Do what is left. Raises InterruptedJobError if told to stop before the end."""
        throughput = self._throughput()
        if self._log.state.is_sealed:
            return
        try:
            self._run(manifest, fetcher, engine, dtype, tracker, throughput)
        except InterruptedJobError:
            raise
        except Exception as error:
            with suppress(StoreError):  # the first error is the one to tell
                self._attempt.write(throughput, status_after(error))
            raise
        finally:
            if engine.held_since is not None:
                engine.held_since = time.monotonic()

    def _run(
        self,
        manifest: Manifest,
        fetcher: MediaFetcher,
        engine: JobEngine,
        dtype: str,
        tracker: JobTracker | None,
        throughput: Throughput,
    ) -> None:
        if len(self._log.state.committed) < self._generation.num_asked(self._shard):
            engine.start(dtype)
            info = engine.wait_until_ready()
            reached("engine-ready")
            if tracker is not None:
                tracker.engine_ready(info)
            self._attempt.engine_info = info
            throughput.started = time.monotonic()
            throughput.activity.enter("other")
            self._attempt.started = engine.held_since or throughput.started
            self._attempt.write(throughput, "running")
            if not self._ask_all(manifest, fetcher, engine, tracker, throughput):
                self._attempt.write(throughput, "interrupted")
                raise InterruptedJobError(
                    f"stopped with {throughput.num_done} of {self._num_records()} records done; "
                    "the same command goes on"
                )
        num_lacking = self._generation.num_asked(self._shard) - len(self._log.state.committed)
        if num_lacking:  # a seal would make it final
            raise CountsError(f"{num_lacking} records were planned and did not come up")
        self._log.seal()
        self._attempt.write(throughput, "complete")
        if tracker is not None:
            tracker.end_shard()

    def _num_records(self) -> int:
        """Of the shard, in this generation; those set aside are the first generation's."""
        asked = self._generation.num_asked(self._shard)
        return asked if self._generation.number else self._shard.num_records

    def _throughput(self) -> Throughput:
        state = self._log.state
        aside = [] if self._generation.number else self._plan.set_aside_of(self._shard)
        tracking = self._spec.tracking
        num_traces = tracking.num_traces if tracking.enabled else 0
        return Throughput(
            times=RecordTimes(self._plan.num_records, num_traces),
            num_before=len(state.committed) + len(aside),
            num_failed_before=state.num_failed + sum(item.kind == "failed" for item in aside),
        )

    def _records(self, manifest: Manifest) -> Iterator[Record]:
        done = self._log.state.committed.copy()
        for record in manifest.records(self._plan, self._shard):
            if record.ordinal in self._generation.asked and record.ordinal not in done:
                yield record

    def _ask_all(
        self,
        manifest: Manifest,
        fetcher: MediaFetcher,
        engine: JobEngine,
        tracker: JobTracker | None,
        throughput: Throughput,
    ) -> bool:
        """Run the loop over the records that are not committed; False if told to stop."""
        throughput.engine_runs_already(engine.process.stats)
        first_step = self._generation.number * self._plan.num_records
        last_metrics = time.monotonic()

        def sample(*, is_last: bool = False) -> None:
            self._attempt.timeline.sample(
                throughput,
                num_fetching=loop.num_fetching,
                num_ready=loop.num_ready,
                is_last=is_last,
            )

        def show() -> None:
            if tracker is not None:
                tracker.log_step(first_step + throughput.num_done, throughput.metrics())
            self._show(throughput)

        def tick() -> None:
            nonlocal last_metrics
            sample()
            now = time.monotonic()
            if now - last_metrics >= _METRIC_SECONDS:
                last_metrics = now
                show()

        committer = Committer(
            self._log, self._spec.limits, lambda: self._attempt.write(throughput, "running")
        )
        loop = RecordLoop(
            self._spec,
            self._records(manifest),
            fetcher=fetcher,
            engine=engine.process,
            events=engine.events,
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
            throughput.activity.enter("store")
            committer.close()
            throughput.activity.enter("other")
            sample(is_last=True)
            show()

    def _show(self, throughput: Throughput) -> None:
        self._display.show(
            Progress(
                num_records=self._num_records(),
                num_done=throughput.num_done,
                num_failed=throughput.num_failed_before + throughput.num_failed,
                records_per_second=throughput.records_per_second,
            )
        )
