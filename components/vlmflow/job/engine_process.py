"""The engine as our child: starts it, sends requests within its credits, notices its death."""

import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vlmflow.job.engine_environment import engine_environment
from vlmflow.job.errors import EngineDiedError
from vlmflow.job.record import FetchedImage, Record
from vlmflow.job.spec import Limits
from vlmflow_engine.wire import ConnectionClosedError, FrameSocket

# For tests and for engines of one's own: a command that takes --fd and speaks vlmflow_engine.wire.
COMMAND_VARIABLE = "VLMFLOW_ENGINE_COMMAND"

_SEND_SECONDS = 60  # the child reads at all times; one that does not is stopped or stuck


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """A frame from the engine, or its end (`frame` is None). `incarnation` counts the starts."""

    incarnation: int
    frame: dict[str, Any] | None


@dataclass(slots=True)
class _Sent:
    num_bytes: int


@dataclass(slots=True)
class _Credits:
    """What the child has said it takes at a time."""

    num_bytes: int = 0
    num_requests: int = 0
    used_bytes: int = 0
    sent: dict[int, _Sent] = field(default_factory=dict)


class EngineProcess:
    """One engine at a time. Events go to `deliver`, called from a thread of ours."""

    def __init__(self, model_name: str, deliver: Callable[[EngineEvent], None]) -> None:
        """`model_name` is what the user calls the model."""
        self._model_name = model_name
        self._deliver = deliver
        # Of the engines started from now on: the model's folder, and the engine's config.
        self.model = model_name
        self.config: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._link: FrameSocket | None = None
        self._credits = _Credits()
        self._outbox: list[dict[str, Any]] = []
        self.incarnation = 0
        self.last_heard = time.monotonic()
        self.info: dict[str, Any] = {}
        self.stats: dict[str, float] = {}  # totals of this incarnation

    @property
    def is_ready(self) -> bool:
        return self._credits.num_requests > 0

    @property
    def num_credits(self) -> int:
        """Requests that the engine takes at a time; 0 before it is ready."""
        return self._credits.num_requests

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def in_flight(self) -> set[int]:
        """Tickets that were sent and not answered."""
        return set(self._credits.sent)

    @property
    def num_in_flight(self) -> int:
        return len(self._credits.sent)

    def start(self) -> None:
        """Start a child, the last one being dead; a `ready` or `failed` frame follows."""
        if self._link is not None:
            self._link.close()
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        # A session of its own: a Ctrl-C on our terminal is for us to deal with.
        command = _command()
        try:
            self._process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                env=engine_environment(),
            )
        except OSError as error:
            ours.close()
            raise EngineDiedError(f"cannot start {command[0]!r}: {error.strerror}") from error
        finally:
            theirs.close()
        self.incarnation += 1
        self.last_heard = time.monotonic()
        self._credits, self._outbox, self.stats = _Credits(), [], {}
        link = self._link = FrameSocket(ours)
        threading.Thread(
            target=self._receive, args=(link, self.incarnation), daemon=True, name="engine-reader"
        ).start()
        names = {"model": self.model, "model_name": self._model_name}
        self._send({"type": "start", **names, "config": self.config})

    def heard(self, frame: dict[str, Any]) -> None:
        """Note a frame of the current incarnation. The owner calls this, on his own thread."""
        self.last_heard = time.monotonic()
        if frame["type"] == "ready":
            self.info = frame["info"]
            self._credits.num_bytes = frame["credit_bytes"]
            self._credits.num_requests = frame["credit_requests"]
        elif frame["type"] == "stats":
            self.stats = frame["stats"]
        elif frame["type"] == "result":
            sent = self._credits.sent.pop(frame["ticket"], None)
            if sent is not None:
                self._credits.used_bytes -= sent.num_bytes

    def can_take(self, images: list[FetchedImage]) -> bool:
        """Whether a request of these images is within the engine's credits now."""
        credits_ = self._credits
        if not self.is_ready or len(credits_.sent) >= credits_.num_requests:
            return False
        # One that exceeds all credits goes alone, else it would wait for ever.
        fits = credits_.used_bytes + _num_bytes(images) <= credits_.num_bytes
        return fits or not credits_.sent

    def send(self, record: Record, images: list[FetchedImage], generation: dict[str, Any]) -> None:
        """Send a record with the next `flush`; its ordinal is the ticket."""
        size = _num_bytes(images)
        self._credits.sent[record.ordinal] = _Sent(size)
        self._credits.used_bytes += size
        self._outbox.append(
            {
                "type": "request",
                "ticket": record.ordinal,
                "prompt": record.prompt,
                "images": [image.data for image in images],
                "generation": generation,
            }
        )

    def flush(self) -> None:
        """Send what is to be sent, many records at a time."""
        if self._outbox:
            frames, self._outbox = self._outbox, []
            self._send(*frames)

    def stop(self, *, grace_seconds: float = 5.0) -> None:
        """End the child: ask, then kill. Its end is no event any more."""
        process, link, num_sent = self._process, self._link, len(self._credits.sent)
        self._process = self._link = None
        self._credits = _Credits()
        self.incarnation += 1
        if process is None or link is None:
            return
        try:
            link.send({"type": "stop"})
            process.wait(grace_seconds if not num_sent else 0.1)
        except (ConnectionClosedError, subprocess.TimeoutExpired):
            pass
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        link.close()

    def end_if_silent(self, limits: Limits) -> float:
        """Kill a child that has not been heard of for too long; return how long, 0 if it is well.

        Its end comes as an event. One that loads has more time: it says nothing until it is ready.
        """
        silence = time.monotonic() - self.last_heard
        allowed = limits.engine_silence_seconds if self.is_ready else limits.engine_load_seconds
        if self._process is None or silence <= allowed:
            return 0.0
        self.last_heard = time.monotonic()
        self.kill()
        return silence

    def kill(self) -> None:
        """Kill a child that hangs; its end comes as an event."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def exit_description(self) -> str:
        """How the child ended, for a sentence."""
        code = self._process.wait() if self._process is not None else None
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def _send(self, *frames: dict[str, Any]) -> None:
        if self._link is None:
            return
        try:
            self._link.send(*frames)
        except ConnectionClosedError:
            # Gone, or not reading for _SEND_SECONDS. The reader tells the owner of its end, and he
            # sends again to the next one.
            self.kill()

    def _receive(self, link: FrameSocket, incarnation: int) -> None:
        try:
            while True:
                self._deliver(EngineEvent(incarnation, link.receive()))
        except ConnectionClosedError:
            self._deliver(EngineEvent(incarnation, None))


def _command() -> list[str]:
    custom = os.environ.get(COMMAND_VARIABLE)
    return shlex.split(custom) if custom else [sys.executable, "-m", "vlmflow_engine.server"]


def _num_bytes(images: list[FetchedImage]) -> int:
    return sum(len(image.data) for image in images)
