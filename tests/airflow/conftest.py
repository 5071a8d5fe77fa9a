"""Tests that run in .venv-airflow; where Airflow is missing there is nothing to collect.

Jobs run as the operators run them: by the interpreter of `.venv`, which has what a job needs, and
with the fake engine in place of a model.
"""

import atexit
import os
import shutil
import tempfile
from importlib.util import find_spec
from typing import Any

import pytest

from tests.job_processes import job_environment

__all__ = ["job_environment"]  # found here by the tests

if find_spec("airflow") is None:
    collect_ignore_glob = ["*"]
else:
    # Airflow reads its home when it is imported, and would make one in the user's.
    if "AIRFLOW_HOME" not in os.environ:
        os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="vlmflow-airflow-home-")
        atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"


class TaskInstance:
    """What operators ask of a task instance, and what they push to it."""

    def __init__(self, task_id: str, *, run_id: str = "run", map_index: int = -1) -> None:
        self.dag_id, self.task_id, self.run_id = "dag", task_id, run_id
        self.map_index, self.try_number = map_index, 1
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.fixture
def context() -> dict[str, Any]:
    """A task's context, as far as operators look at it."""
    from airflow.sdk.execution_time.context import OutletEventAccessors

    return {"ti": TaskInstance("task"), "outlet_events": OutletEventAccessors()}
