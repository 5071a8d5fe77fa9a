"""Each of our DAGs as the dag-processor reads it: no error, quickly, and as its reader expects."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAGS = sorted((ROOT / "dags").glob("*.py"))
PARSE_SECONDS = 1.0  # of processor time, once Airflow itself and its providers are imported

READ = """
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
{imports}
began = time.process_time()
bag = DagBag(dag_folder=sys.argv[1])
seconds = time.process_time() - began
heavy = [name for name in ("torch", "transformers", "boto3", "mlflow") if name in sys.modules]
print("READ " + json.dumps({{
    "seconds": seconds,
    "errors": bag.import_errors,
    "heavy": heavy,
    "dags": {{
        dag.dag_id: {{
            "doc": dag.doc_md or "",
            "untitled": [
                name for name in dag.params if not dag.params.get_param(name).schema.get("title")
            ],
            "retries": min(task.retries for task in dag.tasks if task.task_id != "alert"),
        }}
        for dag in bag.dags.values()
    }},
}}))
"""


def read(file: Path, tmp_path: Path) -> dict:
    """Load one in a fresh process, as the dag-processor does after it has imported Airflow."""
    is_on_kubernetes = "kubernetes" in file.name
    imports = "import airflow.providers.cncf.kubernetes.operators.pod" if is_on_kubernetes else ""
    code = READ.format(imports=imports)
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("engine", "components")),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("READ ")[2])


@pytest.mark.parametrize("file", DAGS, ids=lambda file: file.stem)
def test_a_dag_is_read_without_error_quickly_and_without_heavy_modules(file, tmp_path):
    found = read(file, tmp_path)
    assert found["errors"] == {}
    assert list(found["dags"]) == [file.stem]
    assert found["seconds"] < PARSE_SECONDS
    assert found["heavy"] == []
    dag = found["dags"][file.stem]
    assert dag["doc"].strip().startswith("###")
    assert dag["untitled"] == []
    assert dag["retries"] >= 3, "a retry goes on from the commits"


def test_there_are_three():
    assert [file.stem for file in DAGS] == [
        "vlm_batch_inference",
        "vlm_kubernetes",
        "vlm_nightly_eval",
    ]
