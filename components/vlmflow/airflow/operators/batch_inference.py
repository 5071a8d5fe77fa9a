"""`VLMBatchInferenceOperator`: a manifest through a model, in a process beside the worker."""

import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from vlmflow.airflow.links.job import run_links
from vlmflow.airflow.operators.command import CLEAR_SECONDS, CommandOperator, digest_of
from vlmflow.airflow.operators.job_operator import JobOperatorMixin
from vlmflow.airflow.operators.seconds import check_seconds
from vlmflow.airflow.process import DetachedProcess, forget
from vlmflow.job.spec_arguments import JobPlace
from vlmflow_engine.errors import VlmflowError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from vlmflow.job.spec import JobSpec

_LINK_SECONDS = 5.0  # between two looks for the MLflow run


class VLMBatchInferenceOperator(JobOperatorMixin, CommandOperator):
    """Run every record of a manifest through a vision-language model.

    See `JobOperatorMixin` for the job's arguments and `CommandOperator` for the process's.

    Exit code 75 (interrupted, or S3 away for long) and 4 (engine lost) fail the attempt, and a
    retry goes on from what is committed. Code 2 (an option, the manifest) and 3 (too many records
    failed; the classes are in the message) fail the task. Code 0 counts when the committed report,
    or of one shard its seal, was read and adds up.

    :param deferrable: start the process and give the worker's slot back; the triggerer shows how
        far the job is. The process must outlive the slot, so this is for workers whose machine (or
        container) stays, such as the LocalExecutor's, and best with the triggerer on the same one:
        only there is seen at once that it ended, and only there a kill from the UI ends it. A
        triggerer elsewhere goes by what is committed and by the job's own signs of life. A retry on
        the same machine finds the process and goes on with it; one elsewhere is turned away by the
        job's claims until the first is done. For workers that come and go use
        `VLMBatchInferencePodOperator`.
    :param poll_interval: seconds between two looks at the progress, when deferred.
    """

    template_fields: Collection[str] = tuple(
        dict.fromkeys([*JobOperatorMixin.template_fields, *CommandOperator.template_fields])
    )
    template_fields_renderers: Mapping[str, str] = {
        **JobOperatorMixin.template_fields_renderers,
        **CommandOperator.template_fields_renderers,
    }

    def __init__(
        self,
        *,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = 15.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self.poll_interval = check_seconds("poll_interval", poll_interval)

    def execute(self, context: "Context") -> dict[str, Any]:
        """Run the job and return its summary."""
        spec = self.job_spec()
        place = JobPlace.of(spec)
        self.push_place_links(context, place)
        if self.deferrable:
            self._defer(context, spec)
        with _RunFinder(self, place) as finder:
            ended = self.run_command(
                context,
                self.run_arguments(spec),
                given=spec.canonical_json(),
                tick=lambda: self.push_links(context, finder.links),
            )
        return self.finish_job(context, place, ended)

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> dict[str, Any]:
        """Read the detached process's log and its end, and judge it by the committed report."""
        # As it was when the task was deferred: a decorated function is not called a second time.
        place = JobPlace(event["job_uri"], event["endpoint_url"])
        self.shard = event["shard"]
        self.push_place_links(context, place)
        process = DetachedProcess.of(event["process"])
        if event["status"] == "late":
            self._end_late(process)
        for line in process.lines():
            self.say(line)
        if event["status"] in ("late", "lost"):
            if process.is_here and not process.is_running:
                forget(process.folder)
            raise AirflowException(f"{event['message']}; a retry goes on where it stopped")
        ended = process.ended()
        if process.is_here:
            forget(process.folder)
        return self.finish_job(context, place, ended)

    def _defer(self, context: "Context", spec: "JobSpec") -> None:
        from vlmflow.airflow.triggers.progress import ProgressTrigger

        command, given = self.command(self.run_arguments(spec)), spec.canonical_json()
        folder, digest = self.task_folder(context), digest_of(command, given)
        process = DetachedProcess.find(folder)
        if process is not None and process.digest == digest:
            self.log.info("process %s of an earlier attempt is at it", process.described["pid"])
        else:
            self.end_earlier(process)
            try:
                process = DetachedProcess.start(
                    folder,
                    command,
                    environment=self.process_environment(context),
                    given=given,
                    grace_seconds=self.grace_seconds,
                    digest=digest,
                )
            except OSError as error:
                raise AirflowFailException(self._no_program(error)) from error
            self.log.info("started process %s; its log is %s", process.described["pid"], folder)
        place, limit = JobPlace.of(spec), self.execution_timeout
        self.defer(
            trigger=ProgressTrigger(
                job_uri=place.uri,
                endpoint_url=place.endpoint_url,
                aws_conn_id=self.job_hook.aws_conn_id,
                shard=self.shard_number,
                process=process.as_dict(),
                poll_interval=self.poll_interval,
                deadline=time.time() + limit.total_seconds() if limit is not None else None,
            ),
            method_name="execute_complete",
        )

    def _end_late(self, process: DetachedProcess) -> None:
        """End a process that Airflow would let go on when it has failed the deferred task."""
        if not process.is_here:
            host = process.described["host"]
            self.log.warning("it runs on %s and cannot be stopped from here; stop it there", host)
            return
        self.log.warning("telling process %s to stop", process.described["pid"])
        process.terminate()
        if not process.wait(self.grace_seconds + CLEAR_SECONDS):
            pid = process.described["pid"]
            raise AirflowFailException(f"process {pid} was told to stop and does not end; kill it")


class _RunFinder:
    """Looks for the job's MLflow run on a thread: a store that is slow must not hold up the log."""

    def __init__(self, operator: JobOperatorMixin, place: JobPlace) -> None:
        self._store = operator.job_store(place)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="run-finder", daemon=True)
        self.links: dict[str, str] = {}  # written by the thread, once

    def __enter__(self) -> "_RunFinder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()  # not joined: it may wait for a store, and does no harm

    def _look(self) -> None:
        from vlmflow.job.committed import read_run

        while not self.links and not self._is_over.wait(_LINK_SECONDS):
            with suppress(VlmflowError):  # the job itself says what is wrong with the store
                self.links = run_links(read_run(self._store))
