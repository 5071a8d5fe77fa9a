"""Our DAGs as the dag-processor reads them: no error, quickly, and as their reader expects."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DAGS = sorted((ROOT / "dags").glob("*.py"))
PARSE_SECONDS = 1.0  # of processor time for all, once Airflow itself and its providers are imported

READ = """
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
import airflow.providers.cncf.kubernetes.operators.pod
began = time.process_time()
bag = DagBag(dag_folder=sys.argv[1])
seconds = time.process_time() - began
heavy = [name for name in ("torch", "transformers", "boto3", "mlflow") if name in sys.modules]
print("READ " + json.dumps({
    "seconds": seconds,
    "errors": bag.import_errors,
    "heavy": heavy,
    "dags": {
        dag.dag_id: {
            "doc": dag.doc_md or "",
            "untitled": [
                name for name in dag.params if not dag.params.get_param(name).schema.get("title")
            ],
            "retries": min(task.retries for task in dag.tasks if task.task_id != "alert"),
        }
        for dag in bag.dags.values()
    },
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of them in one fresh process, as the dag-processor after it has imported Airflow."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(ROOT / "dags")],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path_factory.mktemp("home")),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("engine", "components")),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.rpartition("READ ")[2]))


def test_they_are_read_without_error_quickly_and_without_heavy_modules(found):
    assert found["errors"] == {}
    assert sorted(found["dags"]) == [file.stem for file in DAGS]
    assert found["seconds"] < PARSE_SECONDS
    assert found["heavy"] == []


@pytest.mark.parametrize("dag_id", [file.stem for file in DAGS])
def test_a_dag_explains_itself_and_is_tried_again(found, dag_id):
    dag = found["dags"][dag_id]
    assert dag["doc"].strip().startswith("###")
    assert dag["untitled"] == []
    assert dag["retries"] >= 3, "a retry goes on from the commits"


def test_there_are_three():
    assert [file.stem for file in DAGS] == [
        "vlm_batch_inference",
        "vlm_kubernetes",
        "vlm_nightly_eval",
    ]
