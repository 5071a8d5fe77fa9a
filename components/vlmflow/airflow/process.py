"""The job's process on the worker's machine: started, listened to, told to stop, found again."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from signal import SIGTERM
from typing import IO, Any

from vlmflow.airflow import guard
from vlmflow.job.process_identity import describe_process, is_here, is_running

_TAIL_LINES = 20
_MAX_LINE_BYTES = 64 << 10
_TICK_SECONDS = 1.0
_KILL_SECONDS = 15.0  # after the grace: for the guard to clear away what is left


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int | None  # None: it ended where nobody could see it
    tail: Sequence[str] = ()  # its last lines
    output: str = ""  # standard output, if that was asked for

    @property
    def reason(self) -> str:
        """The last line that it said, which of `vlmflow` is a sentence."""
        said = [line for line in self.tail if line.strip()]
        return said[-1].removeprefix("vlmflow: ") if said else "it said nothing"


class AttachedProcess:
    """A command whose lines we read, and that ends when we do."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        given: str = "",
        grace_seconds: float,
        with_output: bool = False,
    ) -> None:
        """`given` is its standard input. With `with_output`, its standard output is kept apart from
        the lines. Raises OSError if there is no such program.
        """
        _check_program(command[0])
        self._output = tempfile.TemporaryFile() if with_output else None  # noqa: SIM115
        self._grace_seconds = grace_seconds
        lifeline, self._lifeline = os.pipe()
        with tempfile.TemporaryFile() as stdin:
            stdin.write(given.encode())
            stdin.seek(0)
            self._process = subprocess.Popen(
                _guarded(command, grace_seconds, str(lifeline), "-"),
                stdin=stdin,
                stdout=self._output or subprocess.PIPE,
                stderr=subprocess.PIPE if self._output else subprocess.STDOUT,
                env=dict(environment),
                pass_fds=[lifeline],
                start_new_session=True,
            )
        os.close(lifeline)
        pipe = self._process.stderr if self._output else self._process.stdout
        assert pipe is not None
        self._pipe: IO[bytes] = pipe

    @property
    def pid(self) -> int:
        return self._process.pid

    def follow(self, say: Callable[[str], object], tick: Callable[[], object]) -> Ended:
        """Say its lines until it has ended; `tick` is called about once a second.

        Whatever is raised meanwhile, the process is at its end when this returns.
        """
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        try:
            for line in self._lines(tick):
                tail.append(line)
                say(line)
            code = self._process.wait()
        finally:
            self.close()
        output = ""
        if self._output is not None:
            self._output.seek(0)
            output = self._output.read().decode(errors="replace")
            self._output.close()
        return Ended(code, tuple(tail), output)

    def terminate(self) -> None:
        """Tell it to stop; the guard kills it after the grace. Does not wait."""
        if self._process.poll() is None:
            self._process.send_signal(SIGTERM)

    def close(self) -> None:
        """See it to its end, and let go of it."""
        self.terminate()
        try:
            self._process.wait(self._grace_seconds + _KILL_SECONDS)
        except subprocess.TimeoutExpired:  # a guard that hangs: what it guards dies with it
            self._process.kill()
            self._process.wait()
        self._pipe.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _lines(self, tick: Callable[[], object]) -> Iterator[str]:
        rest, next_tick = b"", time.monotonic() + _TICK_SECONDS
        while True:
            timeout = max(0.0, next_tick - time.monotonic())
            is_ready = bool(select([self._pipe], [], [], timeout)[0])
            if time.monotonic() >= next_tick:
                tick()
                next_tick = time.monotonic() + _TICK_SECONDS
            if is_ready:
                chunk = os.read(self._pipe.fileno(), _MAX_LINE_BYTES)
                if not chunk:
                    break
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) >= _MAX_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                yield from (_text(line) for line in lines)
            elif self._process.poll() is not None:
                break  # somebody it left behind holds the pipe
        if rest:
            yield _text(rest)


class DetachedProcess:
    """A command that outlives the task's slot: its log, exit code and identity are files.

    They are in a folder of the task instance, the same for each of its attempts, so that a second
    attempt on the same machine finds the process of the first.
    """

    def __init__(self, folder: Path, described: dict[str, Any], digest: str) -> None:
        self.folder = folder
        self.described = described  # as vlmflow.job.process_identity does
        self.digest = digest  # of what it was started with

    @classmethod
    def start(
        cls,
        folder: Path,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        given: str,
        grace_seconds: float,
        digest: str,
    ) -> "DetachedProcess":
        """Start it. Raises OSError if there is no such program."""
        _check_program(command[0])
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("exit", "log", "process.json"):
            (folder / name).unlink(missing_ok=True)
        with tempfile.TemporaryFile() as stdin, (folder / "log").open("wb") as log:
            stdin.write(given.encode())
            stdin.seek(0)
            process = subprocess.Popen(
                _guarded(command, grace_seconds, "-", str(folder / "exit")),
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        process.returncode = 0  # nobody waits for it here: no warning when this goes away
        started = cls(folder, describe_process(process.pid), digest)
        remember(folder, started.described, digest)
        return started

    @classmethod
    def find(cls, folder: Path) -> "DetachedProcess | None":
        """The process of an earlier attempt, if it runs still."""
        try:
            content = json.loads((folder / "process.json").read_text())
        except (OSError, ValueError):
            return None
        found = cls(folder, content["process"], content["digest"])
        return found if found.is_here and is_running(found.described) else None

    @classmethod
    def of(cls, values: dict[str, Any]) -> "DetachedProcess":
        """The one that `as_dict` described."""
        return cls(Path(values["folder"]), values["described"], values["digest"])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a trigger."""
        return {
            "folder": str(self.folder),
            "described": self.described,
            "digest": self.digest,
        }

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine, of which we can see if it runs."""
        return is_here(self.described)

    @property
    def is_running(self) -> bool:
        return is_running(self.described)

    def terminate(self) -> None:
        """Tell it to stop; its guard kills it after the grace. Does not wait."""
        if self.is_here and self.is_running:
            with suppress(ProcessLookupError):
                os.kill(self.described["pid"], SIGTERM)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so long."""
        deadline = time.monotonic() + seconds
        while self.is_running and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.is_running

    def lines(self) -> Iterator[str]:
        """What it has said so far."""
        with suppress(FileNotFoundError), (self.folder / "log").open(errors="replace") as log:
            yield from (line.rstrip("\n") for line in log)

    def ended(self) -> Ended:
        """How it ended; without a code if its guard was killed, or it ran on another machine."""
        tail = deque(self.lines(), maxlen=_TAIL_LINES) if self.is_here else ()
        try:
            code = int((self.folder / "exit").read_text()) if self.is_here else None
        except (OSError, ValueError):
            code = None
        return Ended(code, tuple(tail))


def remember(folder: Path, described: dict[str, Any], digest: str) -> None:
    """Note a process, for the next attempt on this machine."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    written = folder / f"process.json.{os.getpid()}"
    written.write_text(json.dumps({"process": described, "digest": digest}))
    written.replace(folder / "process.json")


def forget(folder: Path) -> None:
    """Leave nothing of a task instance whose process has ended."""
    shutil.rmtree(folder, ignore_errors=True)


def _guarded(command: Sequence[str], grace: float, lifeline: str, exit_file: str) -> list[str]:
    # Isolated and without site-packages: nothing of the worker's environment is imported.
    python = [sys.executable, "-I", "-S", str(Path(guard.__file__).resolve())]
    return [*python, str(grace), lifeline, exit_file, *command]


def _check_program(program: str) -> None:
    """Raise OSError in our own words: the guard's would be a traceback in the log."""
    if shutil.which(program) is None:
        raise FileNotFoundError(f"{program!r} is no program on this machine")


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
