"""The five commands of docs/airflow.md, from a bare Airflow to the first run, as written."""

import json
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.airflow.e2e.world import DAG, DAGS, ROOT
from tools.airflow_connections import ACCESS_KEY, SECRET_KEY
from tools.airflow_standalone import airflow_standalone
from tools.services_process import ENGINE_PYTHON

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(900)]

HEADING = "## From a bare Airflow to the first run"


def blocks() -> list[str]:
    """The indented blocks below the heading."""
    page = (ROOT / "docs/airflow.md").read_text(encoding="utf-8")
    section = page.partition(HEADING)[2].partition("\n## ")[0]
    paragraphs: list[list[str]] = [[]]
    for line in section.splitlines():
        if line.startswith("    "):
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return [textwrap.dedent("\n".join(lines)) for lines in paragraphs if lines]


def test_five_commands_lead_to_a_run_that_succeeds(servers: dict[str, str], tmp_path: Path):
    commands, connections, job = blocks()
    for written, ours in (
        ("ACCESS KEY", ACCESS_KEY),
        ("SECRET KEY", SECRET_KEY),
        ("https://s3.example.org", servers["s3"]),
        ("https://mlflow.example.org", servers["mlflow"]),
        ("/opt/vlmflow/.venv/bin/python", str(ENGINE_PYTHON)),
    ):
        assert written in connections
        connections = connections.replace(written, ours)
    (tmp_path / "connections.json").write_text(connections)
    values = json.loads(job)
    values = {
        name: value.replace("s3://data", "s3://demo") if isinstance(value, str) else value
        for name, value in values.items()
    }
    (tmp_path / "job.json").write_text(json.dumps(values | {"name": "first"}))
    (tmp_path / "dags").symlink_to(DAGS)
    lines = commands.splitlines()
    assert len(lines) == 5
    install, *rest = lines
    assert install == "pip install '.[airflow]'", "which make setup has done"

    home = tmp_path / "home"
    settings = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with airflow_standalone(home, home / "dags", settings=settings) as airflow:
        (home / "dags").mkdir()
        for command in rest:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=airflow.environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        (run,) = airflow.api.call("GET", f"/dags/{DAG}/dagRuns")["dag_runs"]
        state = airflow.api.wait_for_run(DAG, run["dag_run_id"], seconds=400)
        assert state == "success", airflow.api.tasks(DAG, run["dag_run_id"])
        summary = airflow.api.xcom(DAG, run["dag_run_id"], "merge")
    assert summary["counts"] == {
        **summary["counts"],
        "records": 262,
        "succeeded": 256,
        "failed": 5,
        "skipped": 1,
    }
