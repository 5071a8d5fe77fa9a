"""A real MLflow tracking server on loopback, for tests and benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 180.0  # on a machine that has much else to do


@contextmanager
def loopback_mlflow(folder: Path, backend: str | None = None, *, nice: int = 0) -> Iterator[str]:
    """Start one; yield its URL. Artifacts go through it, into the folder.

    `backend` is a database, else SQLite in the folder; `nice` lowers the server's priority.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server"),
                *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
                *("--backend-store-uri", backend or f"sqlite:///{folder}/mlflow.db"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                # A few workers wait for jobs that none of us starts.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )
    os.setpriority(os.PRIO_PROCESS, process.pid, nice)  # before it has threads or children
    try:
        _wait_until_up(process, url, folder / "log")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_up(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the MLflow server did not start:\n{log.read_text()[-3000:]}")
