"""A cluster with one image, jobs to run in it, and a task to run them in as Airflow would."""

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string

from tests.airflow.kubernetes_api.cluster import Cluster
from tests.airflow.kubernetes_api.containers import Image
from tests.airflow.kubernetes_api.server import KubernetesServer

ROOT = Path(__file__).parents[3]
PYTHON = str(ROOT / ".venv/bin/python")  # where the job is; .venv-airflow has no engine
IMAGE = "registry.example.org/vlmflow:test"
SECRET_VALUE = "the-secret-key-that-nobody-may-see"


class StateStore(dict[str, Any]):
    """What Airflow 3.3 keeps of a task from try to try."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


@dataclass
class Task:
    """A task of a DAG run over its tries; `make` makes its operator, as each process does anew."""

    make: Callable[[], Any]
    state: StateStore = field(default_factory=StateStore)
    xcoms: dict[str, Any] = field(default_factory=dict)
    try_number: int = 0
    operator: Any = None  # the one at work
    returned: Any = None
    start_date: datetime | None = None

    def context(self) -> dict[str, Any]:
        ti = SimpleNamespace(
            dag_id="shapes",
            task_id="infer",
            run_id="manual__2026-11-22T00:00:00+00:00",
            map_index=-1,
            try_number=self.try_number,
            start_date=self.start_date,
            xcom_push=lambda key, value: self.xcoms.update({key: value}),
        )
        return {
            "ti": ti,
            "run_id": ti.run_id,
            "dag": SimpleNamespace(),
            "task_state_store": self.state,
            "outlet_events": {},
        }

    def run(self) -> Any:
        """One try, with its triggers; what it raises is what the task fails of."""
        for _ in self.steps():
            pass
        return self.returned

    def steps(self) -> Iterator[Any]:
        """One try, stopped at each trigger before it runs."""
        self.try_number += 1
        self.xcoms.clear()
        self.start_date = datetime.now(UTC)
        self.operator, context = self.make(), self.context()
        # As the task runner calls it; else Airflow warns of an operator within another.
        sentinel = {f"{type(self.operator).__name__}__sentinel": ExecutorSafeguard.sentinel_value}
        call = partial(self.operator.execute, context, **sentinel)
        while True:
            try:
                self.returned = call()
            except TaskDeferred as deferred:
                path, arguments = deferred.trigger.serialize()
                trigger = import_string(path)(**arguments)
                yield trigger
                event = asyncio.run(_first_event(trigger))
                self.operator = self.make()  # another process, later
                call = partial(getattr(self.operator, deferred.method_name), context, event=event)
            else:
                if self.operator.do_xcom_push and self.returned is not None:
                    self.xcoms["return_value"] = self.returned
                return


async def _first_event(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("a trigger without an event")


@dataclass
class Kit:
    """A cluster and a job below one folder."""

    server: KubernetesServer
    cluster: Cluster
    folder: Path
    engine_log: Path
    programs: dict[str, list[str]]

    @property
    def output(self) -> Path:
        return self.folder / "out" / "shapes"

    def job(
        self,
        num_records: int = 6,
        prompts: dict[int, str] | None = None,
        grace_seconds: float = 5,
    ) -> dict[str, Any]:
        """A job's arguments; `prompts` make the fake engine misbehave."""
        model = self.folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        records = [
            {"id": f"r{n}", "prompt": (prompts or {}).get(n, f"question {n}")}
            for n in range(num_records)
        ]
        manifest = self.folder / "shapes.jsonl"
        manifest.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        return {
            "manifest": str(manifest),
            "model": str(model),
            "output": str(self.folder / "out"),
            "tracking": {"enabled": False},
            "limits": {
                "commit_seconds": 0.2,
                "commit_records": 1,
                "grace_seconds": grace_seconds,
            },
        }

    def num_asked(self) -> int:
        """How many answers engines have given, over all pods."""
        return len(self.engine_log.read_text().splitlines()) if self.engine_log.exists() else 0

    def results(self) -> list[str]:
        """The ids of the results, in their order."""
        files = sorted((self.output / "results").glob("*.jsonl"))
        return [json.loads(line)["id"] for file in files for line in file.read_text().splitlines()]

    def has_file(self, name: str) -> bool:
        return (self.output / name).exists()

    def wait_for_file(self, name: str, seconds: float = 20.0) -> None:
        """Wait until the job has written something into its output."""
        deadline = time.monotonic() + seconds
        while not self.has_file(name):
            if time.monotonic() >= deadline:
                raise TimeoutError(name)
            time.sleep(0.02)

    def pod_log(self, name: str) -> str:
        return self.cluster.log("default", name).text()


@contextmanager
def started_kit(folder: Path, *, seconds_per_answer: float = 0.0) -> Iterator[Kit]:
    """A cluster of its own. No process is left behind."""
    engine_log = folder / "engine.log"
    programs = {"vlmflow": [PYTHON, "-m", "vlmflow"]}
    image = Image(
        programs=programs,
        environment={
            "PYTHONPATH": f"{ROOT / 'engine'}:{ROOT / 'components'}",
            "VLMFLOW_ENGINE_COMMAND": shlex.join([PYTHON, str(ROOT / "tests/job/fake_engine.py")]),
            "FAKE_ENGINE_SECONDS": str(seconds_per_answer),
            "FAKE_ENGINE_LOG": str(engine_log),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        },
    )
    other = Image(programs={"python": [sys.executable]})
    cluster = Cluster(
        folder / "pods",
        {IMAGE: image, "python": other},
        {"s3": {"AWS_SECRET_ACCESS_KEY": SECRET_VALUE}},
    )
    with KubernetesServer(cluster) as server:
        yield Kit(server, cluster, folder, engine_log, programs)
