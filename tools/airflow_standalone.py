"""A real Airflow on loopback: scheduler, api-server, dag-processor and triggerer, on SQLite.

It lives in .venv-airflow; whoever starts it may live in another environment.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tools.airflow_api import AirflowApi

ROOT = Path(__file__).parents[1]
BIN = ROOT / ".venv-airflow/bin"
USER = "admin"
_PR_SET_PDEATHSIG = 1
# Every process of it has this variable, whichever session it made itself.
MARK = "VLMFLOW_STANDALONE"
_START_SECONDS = 300.0  # 11 s where there is nothing else to do
_STOP_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Standalone:
    """One that runs."""

    url: str
    password: str  # of the user `admin`
    home: Path  # AIRFLOW_HOME: configuration, database, logs
    session: int  # process id of `airflow standalone`, which leads it
    environment: dict[str, str]  # in which the command `airflow` means this one
    api: AirflowApi

    def processes(self) -> dict[int, str]:
        """All that came of it and lives: command lines by process id."""
        return _processes(self.home, self.session)


@contextmanager
def airflow_standalone(
    home: Path, dags: Path, *, settings: Mapping[str, str] | None = None
) -> Iterator[Standalone]:
    """Start one in a new AIRFLOW_HOME and wait until it is well; no process is left at the end.

    `settings` are further variables of the environment. Raises RuntimeError with the end of the
    log if it does not start.
    """
    home = home.resolve()
    home.mkdir(parents=True)
    port, *log_ports = _free_ports(3)
    url = f"http://127.0.0.1:{port}"
    log = home / "standalone.log"
    environment = _environment(home, dags.resolve(), url, port, log_ports) | dict(settings or {})
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(BIN / "airflow"), "standalone"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            # Ctrl-C in a terminal is for who started it; the interrupt it ends by is sent below.
            preexec_fn=_heed_interrupts,
            env=environment,
        )
    try:
        api = _wait_until_well(process, url, home)
        yield Standalone(url, _password(home), home, process.pid, environment, api)
    finally:
        _stop(process, home)


def _environment(
    home: Path, dags: Path, url: str, port: int, log_ports: list[int]
) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW_", "AWS_", "MLFLOW_", "PYTEST_"))
    }
    paths = [str(ROOT / "engine"), str(ROOT / "components"), os.environ.get("PYTHONPATH", "")]
    return kept | {
        # `standalone` starts `airflow` by its name.
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        MARK: str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        # Tasks would ask port 8080.
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_ports[0]),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(log_ports[1]),
    }


def _heed_interrupts() -> None:
    # Python ignores SIGINT in what a shell started in the background, and in its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Should who started it be killed, it ends as by Ctrl-C, and its components with it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


def _wait_until_well(process: "subprocess.Popen[bytes]", url: str, home: Path) -> AirflowApi:
    deadline = time.monotonic() + _START_SECONDS
    status: dict[str, str] = {}
    while time.monotonic() < deadline and process.poll() is None:
        try:
            status = AirflowApi(url, "", "").health()
        except OSError:
            pass
        else:
            if status and all(part == "healthy" for part in status.values()):
                return AirflowApi(url, USER, _password(home))
        time.sleep(0.25)
    end = (home / "standalone.log").read_text(errors="replace")[-3000:]
    raise RuntimeError(f"Airflow did not start: {status}\n{end}")


def _password(home: Path) -> str:
    file = home / "simple_auth_manager_passwords.json.generated"
    return str(json.loads(file.read_text())[USER])


def _stop(process: "subprocess.Popen[bytes]", home: Path) -> None:
    # It hands an interrupt on to its children; of a SIGTERM it dies and leaves them.
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    # A task in its midst, or a component that did not heed.
    for kill in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        for process_id in _processes(home, process.pid):
            with suppress(ProcessLookupError):
                os.kill(process_id, kill)
        while _processes(home, process.pid) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.1)


def _processes(home: Path, session: int) -> dict[int, str]:
    """By the mark in their environment, or, where a new title was written over that, by session."""
    mark = f"{MARK}={home}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # pid (name) state parent group session ...
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            is_ours = int(fields[3]) == session or mark in (folder / "environ").read_bytes()
            if is_ours and fields[0] != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace").strip()
        except OSError:  # it is gone, or somebody else's
            continue
    return found
