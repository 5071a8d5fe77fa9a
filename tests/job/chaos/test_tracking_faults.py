"""A tracking server that is down, busy or slow, and kills around the run's beginning."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.job.chaos.chaos_job import ChaosJob
from tests.job.chaos.scenarios import TRACKING_POINTS

# MLflow takes seconds to load, in every process anew.
pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    # MLflow's own: how it uses SQLAlchemy, and a pool that the garbage collector closes.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@contextmanager
def tracking_server(status: int, seconds: float) -> Iterator[str]:
    """One that answers everything with this, after so long."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            body = b'{"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "busy"}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that did not wait

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_job(job_server, tmp_path: Path, uri: str, **more) -> ChaosJob:
    return ChaosJob(job_server, tmp_path / "job", str(tmp_path / "out"), mlflow_uri=uri, **more)


def test_a_tracking_server_that_is_busy_costs_a_warning(job_server, expected, tmp_path):
    with tracking_server(429, 0) as uri:
        job = make_job(job_server, tmp_path, uri)
        job.run(())
    assert "the job goes on without it" in job.log(0)
    job.check(expected["short"])


def test_a_tracking_server_that_is_down_costs_a_warning(job_server, expected, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job = make_job(job_server, tmp_path, f"http://127.0.0.1:{port}")
    job.run(())
    assert "the job goes on without it" in job.log(0)
    job.check(expected["short"])


def test_a_tracking_server_that_is_slow_is_not_waited_for(job_server, expected, tmp_path):
    with tracking_server(200, 60) as uri:
        job = make_job(job_server, tmp_path, uri, mlflow_seconds=1.0)
        start = time.monotonic()
        job.run(())
        assert time.monotonic() - start < 30
    assert "vlmflow track --replay" in job.log(0)
    job.check(expected["short"])


@pytest.mark.parametrize("point", TRACKING_POINTS)
def test_a_job_killed_as_its_run_begins_has_one_run_in_the_end(
    point, job_server, expected, tmp_path
):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    job = make_job(job_server, tmp_path, uri)
    job.kill_at(point)
    job.run(())
    job.check(expected["short"])
    run_id = json.loads((tmp_path / "out/m/_work/tracking.json").read_text())["run_id"]
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    experiment = client.get_experiment_by_name("vlmflow")
    runs = client.search_runs([experiment.experiment_id])
    # One that was opened and not yet written down is left behind, and was closed.
    left_behind = [run.info.status for run in runs if run.info.run_id != run_id]
    assert left_behind == (["KILLED"] if point == "tracking-run-opened" else [])
