"""What the tests say and see of the one Airflow that runs: jobs, their objects, their processes."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.demo_services import DemoServices
from tests.job.faulty_tcp import FaultyTcp
from tools.airflow_api import AirflowApi
from tools.airflow_standalone import Standalone

ROOT = Path(__file__).parents[3]
DAGS = ROOT / "dags"
DAG = "vlm_batch_inference"


@dataclass(frozen=True)
class World(DemoServices):
    """All that runs."""

    airflow: Standalone
    way: FaultyTcp  # to S3, as jobs and Airflow use it

    @property
    def api(self) -> AirflowApi:
        return self.airflow.api

    def processes(self, run_id: str, task_id: str, index: int = -1) -> list[int]:
        """The processes that a task instance started, and theirs; not the worker's own."""
        wanted = [f"AIRFLOW_CTX_DAG_RUN_ID={run_id}", f"AIRFLOW_CTX_TASK_ID={task_id}"]
        if index >= 0:
            wanted.append(f"AIRFLOW_CTX_MAP_INDEX={index}")
        found = []
        for process_id in self.airflow.processes():
            try:
                environment = Path(f"/proc/{process_id}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if all(variable.encode() in environment for variable in wanted):
                found.append(process_id)
        return found

    def trigger(self, run_id: str, **conf: Any) -> None:
        """Start the main DAG: the job has the run's id as its name."""
        self.api.wait_for_dag(DAG, seconds=120)
        self.api.unpause(DAG)
        exact = {"engine": {"dtype": "float32"}}
        self.api.trigger(DAG, run_id, {"name": run_id, "max_new_tokens": 96, **exact, **conf})

    def wait_for_shards(self, run_id: str, seconds: float) -> list[int]:
        """Wait for the tasks that run a job, and end the run there: what comes after is tested by
        itself. Whoever seals the last shard writes results and report. Returns the tries.
        """

        def states() -> set[str]:
            found = {task["state"] for task in self.api.tasks(DAG, run_id, "infer")}
            assert not found & {"failed", "upstream_failed"}, self.explain(DAG, run_id)
            return found

        wait_until(lambda: states() == {"success"}, seconds, "all shards")
        self.api.call("PATCH", f"/dags/{DAG}/dagRuns/{run_id}", {"state": "failed"})
        return [task["try_number"] for task in self.api.tasks(DAG, run_id, "infer")]

    def explain(self, dag_id: str, run_id: str) -> str:
        """What to read when a run did not end as it should: the logs of what failed."""
        told = []
        for task in self.api.tasks(dag_id, run_id):
            told.append(f"{task['task_id']}[{task['map_index']}] {task['state']}")
            if task["state"] in ("failed", "up_for_retry"):
                attempts = range(1, task["try_number"] + 1)
                place = (dag_id, run_id, task["task_id"], task["map_index"])
                told += [self.api.log(*place, attempt)[-4000:] for attempt in attempts]
        return "\n".join(told)


def wait_until(is_so: Callable[[], object], seconds: float, what: str) -> None:
    """Wait, and say what for if it does not come."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.1)


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True
