"""One worker's time on one shard: ask what is not committed, commit it, seal the log."""

import time
from collections.abc import Iterator

from vlmflow.job.attempt_file import AttemptFile
from vlmflow.job.claim import Claim
from vlmflow.job.commit_log import CommitLog
from vlmflow.job.committer import Committer
from vlmflow.job.crash_points import reached
from vlmflow.job.errors import CountsError, InterruptedJobError, TooManyFailuresError
from vlmflow.job.generations import Generation
from vlmflow.job.job_engine import JobEngine
from vlmflow.job.loop import RecordLoop, StopSignal
from vlmflow.job.media import MediaFetcher
from vlmflow.job.plan import Manifest, Plan, Shard
from vlmflow.job.progress import Display, Progress
from vlmflow.job.record import Record
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
        self._attempt = AttemptFile(
            store, generation=generation.number, shard=shard.number, epoch=claim.epoch
        )

    def run(
        self,
        manifest: Manifest,
        fetcher: MediaFetcher,
        engine: JobEngine,
        dtype: str,
        tracker: JobTracker | None,
    ) -> None:
        """Do what is left. Raises InterruptedJobError if told to stop before the end."""
        throughput, num_records = self._throughput(), self._num_records()
        if self._log.state.is_sealed:
            return
        if len(self._log.state.committed) < self._generation.num_asked(self._shard):
            engine.start(dtype)
            info = engine.wait_until_ready()
            reached("engine-ready")
            if tracker is not None:
                tracker.engine_ready(info)
            self._attempt.engine_info = info
            throughput.started = time.monotonic()
            self._write_attempt(throughput, "running")
            try:
                is_done = self._ask_all(manifest, fetcher, engine, tracker, throughput)
            except TooManyFailuresError:
                self._write_attempt(throughput, "interrupted")
                raise
            if not is_done:
                self._write_attempt(throughput, "interrupted")
                raise InterruptedJobError(
                    f"stopped with {throughput.num_done} of {num_records} records done; "
                    "the same command goes on"
                )
        num_lacking = self._generation.num_asked(self._shard) - len(self._log.state.committed)
        if num_lacking:  # a seal would make it final
            raise CountsError(f"{num_lacking} records were planned and did not come up")
        self._log.seal()
        self._write_attempt(throughput, "complete")

    def _num_records(self) -> int:
        """Of the shard, in this generation; those set aside are the first generation's."""
        asked = self._generation.num_asked(self._shard)
        return asked if self._generation.number else self._shard.num_records

    def _throughput(self) -> Throughput:
        state = self._log.state
        aside = [] if self._generation.number else self._plan.set_aside_of(self._shard)
        return Throughput(
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

        def show() -> None:
            if tracker is not None:
                tracker.log_step(first_step + throughput.num_done, throughput.metrics())
            self._show(throughput)

        def tick() -> None:
            nonlocal last_metrics
            now = time.monotonic()
            if now - last_metrics >= _METRIC_SECONDS:
                last_metrics = now
                show()

        committer = Committer(
            self._log, self._spec.limits, lambda: self._write_attempt(throughput, "running")
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
            committer.close()
            show()

    def _write_attempt(self, throughput: Throughput, status: str) -> None:
        is_first = self._generation.number == 0
        in_all = self._plan.num_records if is_first else len(self._generation.asked)
        self._attempt.write(throughput, status, num_records=in_all)

    def _show(self, throughput: Throughput) -> None:
        self._display.show(
            Progress(
                num_records=self._num_records(),
                num_done=throughput.num_done,
                num_failed=throughput.num_failed_before + throughput.num_failed,
                records_per_second=throughput.records_per_second,
            )
        )


def open_log(store: Store, generation: Generation, shard: Shard, *, epoch: int = -1) -> CommitLog:
    """A shard's log, read to its end. The epoch is the claim's; who only reads needs none."""
    log = CommitLog(
        store,
        generation.prefix(shard),
        num_records=shard.num_records,
        first_ordinal=shard.first_ordinal,
        epoch=epoch,
    )
    log.load()
    return log
