"""One real Airflow, one S3 server and one MLflow server for all tests here, started once.

The engine, MLflow and the S3 server live in .venv; neither is in the environment of these tests.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.airflow.e2e.world import DAG, DAGS, World
from tests.job.faulty_tcp import FaultyTcp
from tools.airflow_connections import add_connections
from tools.airflow_standalone import airflow_standalone
from tools.services_process import ENGINE_PYTHON, services_process

_OURS = Path(__file__).with_name("dags")
_SCHEDULE = 'schedule="0 3 * * *"'


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URLs of an S3 server with the demo's data, `s3`, and of an MLflow server, `mlflow`."""
    with services_process(tmp_path_factory.mktemp("services")) as urls:
        yield urls


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, servers: dict[str, str]) -> Iterator[World]:
    """Airflow with our DAGs and connections; when it ends, no process of it is left."""
    folder = tmp_path_factory.mktemp("airflow")
    dags = folder / "dags"
    dags.mkdir()
    for file in (DAGS / f"{DAG}.py", *_OURS.glob("*.py")):
        shutil.copy(file, dags)
    # By hand only: no run of the last night when it is unpaused.
    nightly = (DAGS / "vlm_nightly_eval.py").read_text()
    assert _SCHEDULE in nightly
    (dags / "vlm_nightly_eval.py").write_text(nightly.replace(_SCHEDULE, "schedule=None"))
    settings = {
        "XDG_CACHE_HOME": str(folder / "cache"),
        # A killed task hears of it when its heart beats: 5 s is for many workers.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        # And a worker that is gone is missed after that many seconds, not after five minutes.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        # These DAGs do not change, and reading them again takes a processor from the jobs.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    }
    with (
        airflow_standalone(folder / "home", dags, settings=settings) as airflow,
        FaultyTcp(servers["s3"]) as way,
    ):
        add_connections(airflow.api, way.url, servers["mlflow"], ENGINE_PYTHON)
        yield World(servers["s3"], servers["mlflow"], airflow, way)
    assert not airflow.processes()
