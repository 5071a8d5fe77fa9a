"""`ProgressTrigger`: shows how far a job is, and tells when its process has ended."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from vlmflow.airflow.process import DetachedProcess
from vlmflow.airflow.triggers.stored import open_later
from vlmflow_engine.errors import VlmflowError

_SILENT_SECONDS = 600.0  # without a sign of life, a job elsewhere counts as lost


class ProgressTrigger(BaseTrigger):
    """Looks at `progress.json` every `poll_interval` seconds; fires once.

    The event has `status`: "ended" when the process has, or what it was to do is committed; "lost",
    with a `message`, when it ran elsewhere and there was no sign of life for ten minutes; "late",
    with one too, when `deadline` has come; and what this was made of. It says nothing of success:
    the task reads the report itself.

    :param job_uri: the job's folder.
    :param shard: of which to tell; None: of the whole job.
    :param process: of `DetachedProcess.as_dict`.
    :param deadline: seconds since the epoch. Airflow's own timeout of a deferred task would fail it
        without a word to the operator, and the process would go on.
    """

    def __init__(
        self,
        *,
        job_uri: str,
        endpoint_url: str | None,
        aws_conn_id: str | None,
        shard: int | None,
        process: dict[str, Any],
        poll_interval: float,
        deadline: float | None = None,
    ) -> None:
        super().__init__()
        self.job_uri = job_uri
        self.endpoint_url = endpoint_url
        self.aws_conn_id = aws_conn_id
        self.shard = shard
        self.process = process
        self.poll_interval = poll_interval
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Names and places only: a trigger is stored in Airflow's database, secrets are not."""
        return (
            "vlmflow.airflow.triggers.progress.ProgressTrigger",
            {
                "job_uri": self.job_uri,
                "endpoint_url": self.endpoint_url,
                "aws_conn_id": self.aws_conn_id,
                "shard": self.shard,
                "process": self.process,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look on until the process has ended."""
        process = DetachedProcess.of(self.process)
        shown, last_sign = "", datetime.now(UTC)
        while True:
            progress = await self._progress()
            if progress is not None:
                line = describe(progress)
                if line != shown:
                    self.log.info("%s", line)
                    shown = line
                last_sign = max(last_sign, datetime.fromisoformat(progress["updated_at"]))
            if process.is_here:
                if not process.is_running:
                    yield self._event("ended")
                    return
            elif progress is not None and progress["status"] in ("complete", "failed"):
                yield self._event("ended")
                return
            elif (silence := (datetime.now(UTC) - last_sign).total_seconds()) > _SILENT_SECONDS:
                message = (
                    f"process {process.described['pid']} on {process.described['host']} gave no "
                    f"sign of life for {silence:.0f} s"
                )
                yield self._event("lost", message)
                return
            if self.deadline is not None and time.time() >= self.deadline:
                yield self._event("late", "the job was not done within execution_timeout")
                return
            await asyncio.sleep(self._nap())

    async def on_kill(self) -> None:
        """Somebody marked or cleared the task: tell the process to stop, if it is on this machine.

        Airflow calls it from 3.3 on. Its guard sees to the grace.
        """
        process = DetachedProcess.of(self.process)
        if process.is_here:
            process.terminate()
        else:
            where = f"process {process.described['pid']} on {process.described['host']}"
            self.log.warning("%s cannot be stopped from this machine; stop it there", where)

    def _nap(self) -> float:
        """Until the next look."""
        if self.deadline is None:
            return self.poll_interval
        return max(0.0, min(self.poll_interval, self.deadline - time.time()))

    def _event(self, status: str, message: str = "") -> TriggerEvent:
        return TriggerEvent(
            {
                "status": status,
                "message": message,
                "process": self.process,
                "job_uri": self.job_uri,
                "endpoint_url": self.endpoint_url,
                "shard": self.shard,
            }
        )

    async def _progress(self) -> dict[str, Any] | None:
        """None while there is none, or the store does not answer: the job goes on all the same."""
        from vlmflow.job.committed import read_progress

        make_opener = await open_later(self.aws_conn_id, self.endpoint_url)

        def read() -> dict[str, Any] | None:
            return read_progress(make_opener().open(self.job_uri), self.shard)

        try:
            return await asyncio.to_thread(read)
        except VlmflowError as error:
            self.log.warning("cannot tell how far the job is: %s", error)
            return None


def describe(progress: dict[str, Any]) -> str:
    """One line of progress.json, or of a shard's attempt."""
    of = f"/{progress['records']}" if "records" in progress else ""
    told = f"{progress['status']}: {progress['done']}{of} records"
    failed = progress.get("failed_in_all", progress["failed"])
    if failed:
        told += f", {failed} failed"
    if progress["records_per_second"]:
        told += f", {progress['records_per_second']:.1f}/s"
    if progress.get("eta_seconds"):
        told += f", ETA {progress['eta_seconds']:.0f} s"
    return told
