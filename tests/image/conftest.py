"""The image, built from this working tree, and a network of its own with nothing but loopback."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools.image.build import IMAGE, build
from tools.image.podman import environment, missing, podman

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def image() -> str:
    """Build it: minutes at first, seconds for a change of ours."""
    if why := missing():
        pytest.skip(f"no image is built here: {why}")
    build()
    return IMAGE


@dataclass(frozen=True)
class Network:
    """A network namespace in which S3 and MLflow are served; there is no way out of it."""

    process_id: int
    s3: str  # endpoint, with the demo's data
    mlflow: str

    @property
    def option(self) -> str:
        return f"--network=ns:/proc/{self.process_id}/ns/net"

    def python(self, code: str, *arguments: str) -> str:
        """Run code in this environment and that network; return what it prints."""
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self.process_id}/ns/net"]
            + [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env=_client_environment(),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
        ).stdout

    def keys(self, prefix: str) -> list[str]:
        """The demo bucket's keys below a prefix."""
        code = (
            "import json, sys; from vlmflow.job.store import StoreOpener; "
            "store = StoreOpener(sys.argv[1]).open('s3://demo'); "
            "print(json.dumps(list(store.list(sys.argv[2]))))"
        )
        return list(json.loads(self.python(code, self.s3, prefix)))

    def download(self, prefix: str, folder: Path) -> Path:
        """Copy what users read of a job's output."""
        code = (
            "import sys; from pathlib import Path; from examples.demo import download; "
            "download(sys.argv[2], Path(sys.argv[3]), sys.argv[1])"
        )
        self.python(code, self.s3, prefix, str(folder))
        return folder


@pytest.fixture(scope="session")
def network(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Serve the demo's data and an MLflow server where nothing else can be reached."""
    folder = tmp_path_factory.mktemp("services")
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        + [sys.executable, "-m", "tools.loopback_services", str(folder)],
        cwd=ROOT,
        env=_client_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        urls = json.loads(process.stdout.readline())
        yield Network(process.pid, urls["s3"], urls["mlflow"])
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


class Containers:
    """Containers of the image, as strict as a cluster may be: nothing may be written, no rights."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.started: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []

    def command(self, *arguments: str, options: "tuple[str, ...]" = ()) -> list[str]:
        name = f"vlmflow-test-{uuid.uuid4().hex[:12]}"
        self.started.append(name)
        strict = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
        # Where no network is named, the container has one of its own, without an interface up.
        network = () if any(o.startswith("--network") for o in options) else ("--network=none",)
        fixed = ("run", "--rm", f"--name={name}", *strict, *network)
        return ["podman", *fixed, *options, self.image, *arguments]

    def run(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run one to its end."""
        return subprocess.run(
            self.command(*arguments, **options),
            capture_output=True,
            text=True,
            env=environment(),
            timeout=300,
        )

    def python(self, code: str, **options: Any) -> str:
        """What code prints in one, run by the image's Python."""
        more = ("--entrypoint=python", *options.pop("options", ()))
        done = self.run("-c", code, options=more, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start one; podman reaches it by the name that was added to `started`."""
        process = subprocess.Popen(
            self.command(*arguments, **options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        self._processes.append(process)
        return process

    def end(self) -> None:
        """Leave none of them."""
        podman("rm", "--force", "--ignore", "--time=0", *self.started, stdout=subprocess.DEVNULL)
        for process in self._processes:
            process.communicate(timeout=60)


@pytest.fixture
def containers(image: str) -> Iterator[Containers]:
    found = Containers(image)
    yield found
    if found.started:
        found.end()


def _client_environment() -> dict[str, str]:
    paths = [str(ROOT / name) for name in ("engine", "components", ".")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
