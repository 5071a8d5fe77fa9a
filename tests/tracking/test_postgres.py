"""A server that keeps its runs in PostgreSQL, as those of teams do."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.tracking.test_lifecycle import Register, description
from tests.tracking.test_traces import record
from tools.loopback_mlflow import loopback_mlflow
from vlmflow.job.tracked.traces import timed_trace
from vlmflow.tracking.lifecycle import connect, open_run
from vlmflow.tracking.logged_model import ModelDescription, find_or_create_model
from vlmflow.tracking.metric_point import MetricPoint
from vlmflow.tracking.traces import log_timed_traces

PROGRAMS = ("initdb", "postgres")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)), reason="no PostgreSQL (initdb, postgres) on PATH"
    ),
]


def unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root; None: we are not."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@pytest.fixture
def database():
    """The URI of an empty database."""
    user = unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # not below pytest's, which others cannot enter
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user}
    command = ["initdb", "-D", str(data), "-U", "mlflow", "-A", "trust", "-E", "UTF8", "-N"]
    subprocess.run(command, check=True, cwd=folder, **quiet)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["postgres", "-D", str(data), "-p", str(port), "-k", str(folder), "-F"], cwd=folder, **quiet
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / f".s.PGSQL.{port}").exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(600)
def test_all_that_a_job_logs_is_taken(database, tmp_path):
    pytest.importorskip("psycopg2", reason="no driver for PostgreSQL")
    with loopback_mlflow(tmp_path / "server", database) as url:
        client = connect(url)
        register = Register()
        run = open_run(client, description("postgres"), register)
        points = [MetricPoint("a", n / 3, n, 1_800_000_000_000 + n) for n in range(1000)]
        run.send_points(points)
        run.send_points(points)
        model = ModelDescription("d" * 64, "dtype=float32", "model", {"path": "m"})
        model_id = find_or_create_model(client, run.experiment_id, run.run_id, model)
        assert find_or_create_model(client, run.experiment_id, run.run_id, model) == model_id
        run.link_model(model_id)
        dataset = description("postgres").dataset.key
        run.log_model_metrics(points[:2], model_id=model_id, dataset=dataset)
        log_timed_traces(run, [timed_trace(record())], model_id)
        run.end("KILLED")
        assert open_run(client, description("postgres"), register).run_id == run.run_id
        stored = client.get_run(run.run_id)
        assert stored.info.status == "RUNNING"
        assert stored.data.params == {"model": "m", "seed": "0"}
        history = client.get_metric_history(run.run_id, "a")
        assert [(m.step, m.value) for m in history] == [(p.step, p.value) for p in points]
        assert [m.key for m in client.get_logged_model(model_id).metrics]
        [trace] = client.search_traces(locations=[run.experiment_id], run_id=run.run_id)
        assert len(trace.data.spans) == 8
