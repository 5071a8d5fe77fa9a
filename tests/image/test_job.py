"""Whole jobs in containers without rights, on a network that has nothing but S3 and MLflow."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.demo import CHECKPOINT
from examples.shapes.manifest import write_manifest
from tests.image.compose import podman_arguments, services
from tests.image.conftest import ROOT
from tools.image.podman import environment, podman

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NUM_ANSWERS = 256
_START_SECONDS = 240.0  # until the first commit, on a machine that has much else to do


def answers(path: Path) -> dict[str, str]:
    """The text of each record of a results file."""
    lines = map(json.loads, path.read_text().splitlines())
    return {line["id"]: line["text"] for line in lines}


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, str]:
    """The same job's answers outside of any container, in float32."""
    folder = tmp_path_factory.mktemp("expected")
    manifest = write_manifest(folder / "input")
    subprocess.run(
        [sys.executable, "-m", "vlmflow", "run", "--manifest", str(manifest)]
        + ["--model", str(CHECKPOINT), "--output", str(folder), "--name", "shapes"]
        + ["--dtype=float32", "--max-new-tokens=96", "--no-mlflow"],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    return answers(folder / "shapes/results/00000.jsonl")


def options(network) -> "tuple[str, ...]":
    return (
        network.option,
        f"--volume={CHECKPOINT.absolute()}:/models/shapes:ro",
        "--env=AWS_ACCESS_KEY_ID=test",
        "--env=AWS_SECRET_ACCESS_KEY=test",
        "--env=AWS_DEFAULT_REGION=us-east-1",
        "--env=AWS_EC2_METADATA_DISABLED=true",
        "--env=OMP_NUM_THREADS=1",
    )


def job(network, name: str, *more: str) -> list[str]:
    return [
        "run", "--manifest=s3://demo/shapes/manifest.jsonl", "--model=/models/shapes",
        "--output=s3://demo/results", f"--name={name}", f"--endpoint-url={network.s3}",
        "--dtype=float32", "--max-new-tokens=96", *more,
    ]  # fmt: skip


def test_a_whole_job_gives_the_answers_that_it_gives_without_a_container(
    containers, network, expected, tmp_path
):
    done = containers.run(
        *job(network, "whole", f"--mlflow-uri={network.mlflow}"), options=options(network)
    )
    assert done.returncode == 0, done.stderr
    output = network.download("results/whole/", tmp_path)
    report = json.loads((output / "report.json").read_text())
    assert (report["counts"]["succeeded"], report["counts"]["failed"]) == (NUM_ANSWERS, 5)
    assert answers(output / "results/00000.jsonl") == expected
    assert (output / "report.html").is_file()
    code = (
        "import mlflow, sys; mlflow.set_tracking_uri(sys.argv[1]); "
        "run = mlflow.get_run(sys.argv[2]); print(run.info.status)"
    )
    assert network.python(code, network.mlflow, report["mlflow"]["run_id"]) == "FINISHED\n"


def test_sigterm_drains_a_job_and_the_next_container_goes_on(
    containers, network, expected, tmp_path
):
    command = job(network, "stopped", "--no-mlflow", "--commit-seconds=0.1", "--max-batch-size=2")
    process = containers.start(*command, options=options(network))
    deadline = time.monotonic() + _START_SECONDS
    while not any("/commit-" in key for key in network.keys("results/stopped/_work/shards")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    podman("kill", "--signal=TERM", containers.started[-1], stdout=subprocess.DEVNULL, check=True)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert not network.keys("results/stopped/results")

    done = containers.run(*command, options=options(network))
    assert done.returncode == 0, done.stderr
    output = network.download("results/stopped/", tmp_path)
    assert answers(output / "results/00000.jsonl") == expected
    attempts = json.loads((output / "report.json").read_text())["attempts"]
    assert len(attempts) == 2, "the second went on with what the first had left"


def test_what_the_engine_leaves_behind_when_it_is_killed_is_reaped(containers, network):
    # One record at a time: the job must not be over before it has been looked at.
    command = job(network, "killed", "--no-mlflow", "--commit-seconds=0.1", "--max-batch-size=1")
    process = containers.start(*command, options=options(network))
    name = containers.started[-1]
    deadline = time.monotonic() + _START_SECONDS
    while not any("/commit-" in key for key in network.keys("results/killed/_work/shards")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    code = """
import os, signal, time
from pathlib import Path

def processes():
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        yield int(entry.name), words, state

killed = 0
for number, words, _ in processes():
    if b"vlmflow_engine.server" in words.split(bytes(1)):
        os.kill(number, signal.SIGKILL)
        killed += 1
time.sleep(2)
print(killed, [number for number, _, state in processes() if state == "Z"])
"""
    asked = podman("exec", name, "python", "-c", code, stdout=subprocess.PIPE, check=True)
    assert asked.stdout == "1 []\n"
    process.communicate(timeout=240)
    assert process.returncode == 0, "the engine was started again"


def test_what_compose_starts_runs_as_it_is_written(containers, network, tmp_path):
    """Each service of ours with its own options; the store is moto, as no image is pulled here."""
    where = {"s3:9000": network.s3.removeprefix("http://")}
    hosts = (network.option, "--add-host=mlflow:127.0.0.1", "--env=OMP_NUM_THREADS=1")
    written = services()
    podman("volume", "rm", "--force", "mlflow-data-of-test", stdout=subprocess.DEVNULL)
    name = "vlmflow-test-compose-mlflow"
    containers.started.append(name)
    arguments = podman_arguments(written["mlflow"], containers.image, {})
    server = subprocess.Popen(
        ["podman", "run", "--rm", f"--name={name}", *hosts, *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _, *check = written["mlflow"]["healthcheck"]["test"]
        deadline = time.monotonic() + _START_SECONDS
        while podman("exec", name, *check, capture_output=True).returncode != 0:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(1)
        for service in ("input", "job"):
            arguments = podman_arguments(written[service], containers.image, where)
            podman("run", "--rm", *hosts, *arguments, check=True, timeout=300)
    finally:
        podman("rm", "--force", "--ignore", "--time=0", name, stdout=subprocess.DEVNULL)
        server.wait(60)
        podman("volume", "rm", "--force", "mlflow-data-of-test", stdout=subprocess.DEVNULL)
    report = json.loads((network.download("results/shapes/", tmp_path) / "report.json").read_text())
    assert report["counts"]["succeeded"] == NUM_ANSWERS
    assert report["mlflow"]["run_id"]
