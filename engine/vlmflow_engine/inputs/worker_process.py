"""One preprocessing worker, as its parent sees it."""

import os
import signal
import socket
import subprocess
import sys
from typing import Any

from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.worker import CPU_SECONDS
from vlmflow_engine.inputs.worker_frames import BuilderSpec
from vlmflow_engine.wire import ConnectionClosedError, FrameSocket

# Also when it computes nothing: waiting for a file system that has gone, or stopped by somebody.
WALL_SECONDS = 300.0
_START_SECONDS = 120.0

_PYTHON = sys.executable
_MODULE = "vlmflow_engine.inputs.worker"
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    # A worker that processes images by transformers does so without torch.
    "USE_TORCH": "0",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc keeps what a picture took for the next one: else 2,000 page faults, a third of the CPU
    # time of a megapixel (benchmarks/preprocess.py).
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
}


class WorkerProcess:
    """A process, and our end of the socket. One thread uses it; any may `kill` it."""

    def __init__(self, *, wall_seconds: float) -> None:
        """Start the process and return at once. Raises OSError."""
        self._wall_seconds = wall_seconds
        self._is_late = False
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # Never multiprocessing: it runs the user's script again, if that is a file at all.
                self._process = subprocess.Popen(
                    # -P: what lies in the working directory is no module of ours.
                    [_PYTHON, "-P", "-m", _MODULE]
                    + ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=os.environ | _ENVIRONMENT | {"PYTHONPATH": _search_path()},
                    process_group=0,  # a Ctrl-C on the terminal is the parent's affair
                )
            except BaseException:
                ours.close()
                raise
        self._socket = ours
        self._link = FrameSocket(ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, spec: BuilderSpec) -> None:
        """Wait until it is ready. Raises ConnectionClosedError, or ModelError in its own words."""
        self._socket.settimeout(_START_SECONDS)
        self.send(spec.start_frame())
        frame = self.receive()
        if frame["type"] == "failed":
            raise ModelError(frame["message"])
        self._socket.settimeout(self._wall_seconds)

    def send(self, frame: dict[str, Any]) -> None:
        """Raises ConnectionClosedError."""
        try:
            self._link.send(frame)
        except ConnectionClosedError as error:
            self._is_late = isinstance(error.__cause__, TimeoutError)
            raise

    def receive(self) -> dict[str, Any]:
        """Raises ConnectionClosedError, also when nothing comes for `wall_seconds`."""
        try:
            return self._link.receive()
        except ConnectionClosedError as error:
            self._is_late = isinstance(error.__cause__, TimeoutError)
            raise

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """See to its end, and say how it came about."""
        limit = self._socket.gettimeout()
        self._link.close()
        self._process.kill()  # harmless if it is dead
        code = self._process.wait()
        if self._is_late:
            return f"took more than {limit:g} s"
        if code == -signal.SIGXCPU:
            return f"computed for more than {CPU_SECONDS} s"
        if code < 0:
            return f"was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"ended with exit code {code}"


def _search_path() -> str:
    """Let it find modules where this process does, whatever has been done to sys.path."""
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
