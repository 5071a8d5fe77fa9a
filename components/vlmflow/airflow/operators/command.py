"""`CommandOperator`: runs `vlmflow` as a process of its own, in the interpreter that is named."""

import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from vlmflow.airflow.operators.connected import ConnectedOperator
from vlmflow.airflow.operators.seconds import check_seconds
from vlmflow.airflow.process import AttachedProcess, DetachedProcess, Ended, forget, remember
from vlmflow.job.errors import SpecError
from vlmflow.job.given import given, given_mapping
from vlmflow.job.process_identity import describe_process
from vlmflow.job.store.locate import without_query

if TYPE_CHECKING:
    from airflow.sdk import Context

CLEAR_SECONDS = 20.0  # after the grace, until an earlier attempt's process is taken to be stuck


class CommandOperator(ConnectedOperator):
    """A subcommand of `vlmflow`, never in the worker's own process.

    Its lines go to the task's log as they come. Whatever ends the task ends the process: it is told
    to stop (SIGTERM), has `grace_seconds` to commit what is in flight, and is killed then with all
    that it started. A worker that is killed by SIGKILL itself cannot tell it; a guard beside the
    process sees that and does the same.

    :param python: interpreter with vlmflow and its engine; else the connection's, else the
        worker's own.
    :param env: environment variables beside the worker's own (templated; or JSON of such). The UI
        shows them: secrets belong in a connection.
    :param grace_seconds: between SIGTERM and SIGKILL. Keep it above `limits.grace_seconds` (25 s),
        in which the job finishes what is in flight.
    """

    template_fields: Collection[str] = (*ConnectedOperator.template_fields, "python", "env")
    template_fields_renderers: Mapping[str, str] = {"env": "json"}

    def __init__(
        self,
        *,
        python: str | None = None,
        env: Mapping[str, str] | str | None = None,
        grace_seconds: float = 40.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.python = python
        self.env = env
        self.grace_seconds = check_seconds("grace_seconds", grace_seconds, is_zero_allowed=True)
        self._process: AttachedProcess | None = None
        self._is_killed = False

    def on_kill(self) -> None:
        """Tell the process to stop. Does not wait: Airflow kills a worker that waits for 5 s."""
        self._is_killed = True
        if self._process is not None:
            self.log.info("telling the job to stop; it has %s s", self.grace_seconds)
            self._process.terminate()

    def run_command(
        self,
        context: "Context",
        arguments: Sequence[str],
        *,
        given: str = "",
        with_output: bool = False,
        tick: Callable[[], object] = lambda: None,
    ) -> Ended:
        """Run a subcommand to its end, whatever that is. Raises AirflowFailException without one.

        `given` is its standard input; `tick` is called about once a second.
        """
        command = self.command(arguments)
        folder = self.task_folder(context)
        self.end_earlier(DetachedProcess.find(folder))
        if self._was_killed():
            raise AirflowException("the task was killed before its process was started")
        self.log.info("running %s", shlex.join(without_query(word) for word in command))
        try:
            self._process = AttachedProcess(
                command,
                environment=self.process_environment(context),
                given=given,
                grace_seconds=self.grace_seconds,
                with_output=with_output,
            )
        except OSError as error:
            raise AirflowFailException(self._no_program(error)) from error
        # For the next attempt, should this worker be killed by SIGKILL.
        remember(folder, describe_process(self._process.pid), digest_of(command, given))
        if self._was_killed():  # while it was started
            self._process.terminate()
        try:
            return self._process.follow(self.say, tick)
        finally:
            self._process = None
            forget(folder)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The whole command line."""
        python = given(self.python) or self.job_hook.settings.python
        if not python:
            import sys

            python = sys.executable
        return [str(python), "-m", "vlmflow", *arguments]

    def process_environment(self, context: "Context") -> dict[str, str]:
        """The worker's environment, the connections' secrets, the task's names, and `env`.

        Raises AirflowFailException if `env` is none.
        """
        from airflow.sdk.configuration import conf
        from airflow.sdk.execution_time.context import context_to_airflow_vars

        try:
            own = given_mapping("env", self.env)
        except SpecError as error:
            raise AirflowFailException(str(error)) from None
        environment = self.job_hook.environment()
        environment |= context_to_airflow_vars(context, in_env_var_format=True)
        map_index = getattr(context["ti"], "map_index", -1)
        if map_index is not None and map_index >= 0:
            environment["AIRFLOW_CTX_MAP_INDEX"] = str(map_index)
        if base_url := conf.get("api", "base_url", fallback=""):
            environment["AIRFLOW__API__BASE_URL"] = base_url
        environment["PYTHONUNBUFFERED"] = "1"
        return environment | {name: str(value) for name, value in own.items()}

    def task_folder(self, context: "Context") -> Path:
        """Where this task instance's processes are remembered, for all its attempts."""
        from vlmflow.job.cache_folder import cache_folder

        ti = context["ti"]
        names = (ti.dag_id, ti.run_id, ti.task_id, str(getattr(ti, "map_index", -1)), self._home())
        return cache_folder("airflow") / sha256("\0".join(names).encode()).hexdigest()[:24]

    def end_earlier(self, earlier: DetachedProcess | None) -> None:
        """See an earlier attempt's process to its end: two at a time only get in each other's way.

        Raises AirflowFailException if it will not end.
        """
        if earlier is None:
            return
        pid = earlier.described["pid"]
        self.log.warning("process %s of an earlier attempt runs still; telling it to stop", pid)
        earlier.terminate()
        if not earlier.wait(self.grace_seconds + CLEAR_SECONDS):
            raise AirflowFailException(f"process {pid} of an earlier attempt does not end; kill it")

    def say(self, line: str) -> None:
        """Write a line of the process to the task's log."""
        self.log.info("%s", line)

    def _was_killed(self) -> bool:
        """A call: a signal's handler may change it between two lines."""
        return self._is_killed

    def _no_program(self, error: OSError) -> str:
        return f"{error}; give python=, or an interpreter in the vlmflow connection"

    @staticmethod
    def _home() -> str:
        return os.environ.get("AIRFLOW_HOME", "")


def digest_of(command: Sequence[str], given: str) -> str:
    """Know a command and its input again."""
    return sha256("\0".join([*command, given]).encode()).hexdigest()
