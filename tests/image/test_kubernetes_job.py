"""The container of deploy/'s Job on the image, as a kubelet starts it: user, volumes, variables."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.image.conftest import Containers, Network
from tools.image.podman import podman
from tools.render_deploy import GOLDEN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SECRETS = {"vlmflow-aws": {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}}
NUM_RECORDS = 64


class Pods:
    """Pods of the Job that `cpu` renders, each with empty volumes of its own."""

    def __init__(self, spec: dict[str, Any], network: Network, folder: Path) -> None:
        manifests = list(yaml.safe_load_all((GOLDEN / "cpu.yaml").read_text()))
        (job,) = [item for item in manifests if item["kind"] == "Job"]
        (config,) = [item for item in manifests if item["kind"] == "ConfigMap"]
        self._pod = job["spec"]["template"]["spec"]
        (self.container,) = self._pod["containers"]
        spec = json.loads(config["data"]["spec.json"]) | spec
        self._network = network
        self._folder = folder
        (folder / "spec").mkdir()
        (folder / "spec/spec.json").write_text(json.dumps(spec))
        for parent in (folder, *folder.parents[:2]):  # the container's user is another one
            parent.chmod(0o755)

    def options(self, name: str) -> tuple[str, ...]:
        """What podman is told of a new pod, beside what `Containers` tells it of each."""
        security = self._pod["securityContext"]
        assert self.container["securityContext"]["readOnlyRootFilesystem"] is True
        return (
            self._network.option,
            "--read-only-tmpfs=false",
            f"--user={security['runAsUser']}:{security['runAsGroup']}",
            f"--entrypoint={json.dumps(self.container['command'])}",
            *self._volumes(name, security["fsGroup"]),
            *self._variables(),
            "--env=OMP_NUM_THREADS=1",
        )

    def _volumes(self, name: str, group: int) -> list[str]:
        given = []
        volumes = {volume["name"]: volume for volume in self._pod["volumes"]}
        for mount in self.container["volumeMounts"]:
            volume, path = volumes[mount["name"]], mount["mountPath"]
            if "configMap" in volume:
                given.append(f"--volume={self._folder / 'spec'}:{path}:ro")
            elif volume["emptyDir"].get("medium") == "Memory":
                given.append("--shm-size=256m")
            else:
                place = self._folder / name / mount["name"]
                place.mkdir(parents=True)
                os.chown(place, 0, group)
                place.chmod(0o2770)  # as an emptyDir of a pod with an fsGroup, less the others
                given.append(f"--volume={place}:{path}")
        return given

    def _variables(self) -> list[str]:
        given = []
        for variable in self.container["env"]:
            value = variable.get("value")
            if value is None:
                reference = variable["valueFrom"]["secretKeyRef"]
                value = SECRETS.get(reference["name"], {}).get(reference["key"])
            if value is not None:
                given.append(f"--env={variable['name']}={value}")
        return given


def test_the_jobs_workers_run_on_the_image_and_go_on_after_sigterm(
    containers: Containers, network: Network, tmp_path: Path
) -> None:
    spec = {
        "manifest": "s3://demo/shapes/manifest.jsonl",
        "model": "s3://demo/models/shapes",
        "output": "s3://demo/results",
        "name": "pods",
        "num_shards": 8,
        "limit": NUM_RECORDS,
        "endpoint_url": network.s3,
        "tracking": {"enabled": False},
        "engine": {"max_batch_size": 1},  # slow enough to be stopped in the middle
    }
    pods = Pods(spec, network, tmp_path)
    arguments = pods.container["args"]
    first = containers.start(*arguments, options=pods.options("first"))
    deadline = time.monotonic() + 120
    while not any("/commit-" in key for key in network.keys("results/pods/_work/shards")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    podman("kill", "--signal=TERM", containers.started[-1], check=True)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 75, said
    second = containers.run(*arguments, options=pods.options("second"))
    assert second.returncode == 0, second.stderr
    output = network.download("results/pods/", tmp_path / "output")
    report = json.loads((output / "report.json").read_text())
    assert report["counts"]["succeeded"] == NUM_RECORDS
    assert network.keys("results/pods/_SUCCESS.json")
    # Models and images lie where the volume is, which is where the next kernel would, too.
    assert list((tmp_path / "second/vlmflow-cache").rglob("config.json"))
