"""What the tests say and see: jobs on S3, steps in containers, MLflow."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from kfp import components

from tests.demo_services import DemoServices
from tools.airflow_connections import ACCESS_KEY, SECRET_KEY
from tools.kfp_local.containers import Containers
from tools.kfp_local.session import local_runs
from tools.kubeflow_files import COMPILED
from vlmflow.kubeflow.image import DEFAULT_IMAGE
from vlmflow.kubeflow.job_parameters import job_parameters

# Not the name that the image's own tests use: theirs may be built again while these run.
IMAGE = "localhost/vlmflow:kubeflow-test"
NUM_GOOD = 40


@dataclass(frozen=True)
class World(DemoServices):
    """All that runs."""

    root: Path  # kfp's pipeline root
    _jobs: dict[str, dict[str, str]] = field(default_factory=dict)

    @contextmanager
    def kubeflow(self, environment: Mapping[str, str] | None = None) -> Iterator[Containers]:
        """What is called in this block runs in containers."""
        secret = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        machine = {"OMP_NUM_THREADS": "1"}  # a model this small is computed sooner without a second
        with local_runs(
            self.root,
            images={DEFAULT_IMAGE: IMAGE},
            environment={**secret, **machine, **(environment or {})},
            user="10001:0",
        ) as containers:
            yield containers

    def job(self, name: str, num_shards: int = 1, num_good: int = NUM_GOOD, **fields: Any) -> Any:
        """Write a manifest; return the parameters of a job of that name."""
        self._jobs[name] = self.write_manifest(name, num_good)
        exact = {"dtype": "float32", **fields.pop("engine", {})}
        return job_parameters(
            name=name,
            manifest=f"s3://demo/shapes/{name}.jsonl",
            model="s3://demo/models/shapes",
            output="s3://demo/results",
            num_shards=num_shards,
            endpoint_url=self.s3,
            tracking=fields.pop("tracking", {"uri": self.mlflow}),
            engine=exact,
            generation={"max_new_tokens": fields.pop("max_new_tokens", 96)},
            limits={"max_failure_rate": 0.5, **fields.pop("limits", {})},
            **fields,
        )

    def check_job(self, name: str) -> None:
        """Each record is answered once and rightly, whatever happened."""
        self.check_answers(name, self._jobs[name])

    def start_mlflow_run(self) -> str:
        """Start a run as KFP's MLflow plugin does; return its id."""
        body = json.dumps({"experiment_id": "0"}).encode()
        url = f"{self.mlflow}/api/2.0/mlflow/runs/create"
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(url, body, headers), timeout=30) as answer:
            return str(json.load(answer)["run"]["info"]["run_id"])

    def report(self, name: str) -> Any:
        return json.loads(self.read(f"results/{name}/report.json"))


def checked_in(name: str) -> Any:
    """A pipeline as it lies in the repository, read by kfp's own parser."""
    return components.load_component_from_file(str(COMPILED / f"{name}.yaml"))


def steps(containers: Containers) -> list[tuple[str, int]]:
    """What ran, in order, with exit codes; tasks of a loop end in any order."""
    return [(" ".join(ended.command[:2]), ended.exit_code) for ended in containers.ended]
