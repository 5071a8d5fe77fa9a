"""docker-compose.yml: what it names is there, and it reaches no further than this machine."""

import json
import re

import pytest

from tests.image.compose import ROOT, read, services
from vlmflow.cli import main

OURS = ("mlflow", "input", "job")


def test_there_are_a_store_a_tracking_server_and_the_job():
    assert set(services()) == {"s3", *OURS}
    for name in OURS:
        assert services()[name]["image"] == "${VLMFLOW_IMAGE:-vlmflow:cpu}"
        assert services()[name]["read_only"] and services()[name]["cap_drop"] == ["ALL"]
    assert re.fullmatch(r"\$\{S3_IMAGE:-[\w./-]+:[\w.-]+\}", services()["s3"]["image"]), "a tag"


def test_volumes_and_services_that_are_named_are_there():
    for service in services().values():
        assert set(service.get("depends_on", ())) <= set(services())
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in read()["volumes"]


def test_nothing_is_reachable_from_elsewhere():
    ports = [port for service in services().values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_the_jobs_command_is_a_job(capsys):
    command, *options = services()["job"]["command"]
    assert command == "run"
    assert main(["spec", *options]) == 0
    spec = json.loads(capsys.readouterr().out)
    assert spec["manifest"] == "s3://demo/shapes/manifest.jsonl"


def test_addresses_are_those_of_the_services():
    job = services()["job"]["command"]
    assert "--endpoint-url=http://s3:9000" in job
    assert services()["input"]["command"][-1] == "http://s3:9000"
    assert "127.0.0.1:9000:9000" in services()["s3"]["ports"]
    assert "--mlflow-uri=http://mlflow:5000" in job
    assert "--port=5000" in services()["mlflow"]["command"]
    # MLflow answers only to names that it was told.
    allowed = next(o for o in services()["mlflow"]["command"] if o.startswith("--allowed-hosts="))
    assert "mlflow:5000" in allowed


def test_the_store_takes_the_jobs_credentials():
    credentials, store = services()["job"]["environment"], services()["s3"]["environment"]
    assert credentials["AWS_ACCESS_KEY_ID"] == store["MINIO_ROOT_USER"]
    assert credentials["AWS_SECRET_ACCESS_KEY"] == store["MINIO_ROOT_PASSWORD"]


def test_who_stops_the_job_waits_for_its_grace():
    seconds = float(services()["job"]["stop_grace_period"].removesuffix("s"))
    assert seconds > 25  # --grace


def test_without_a_store_the_input_says_so_in_a_sentence():
    from examples.compose_input import wait_for

    with pytest.raises(SystemExit, match="no S3 server answers at http://127.0.0.1:1 after 0 s"):
        wait_for("http://127.0.0.1:1", 0)
