"""The command line of a pipeline's file: its parameters, its errors, and what a server is sent."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.kubeflow.kfp_server import FakeServer, kfp_server
from tools.kubeflow_files import load_pipeline
from vlmflow.cli.job_options import add_job_options
from vlmflow.job.spec_arguments import make_spec
from vlmflow.kubeflow.job_parameters import job_parameters
from vlmflow.kubeflow.submit import run_main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
JOB = [
    *("--manifest", "s3://data/shapes.jsonl"),
    *("--model", "s3://models/shapes"),
    *("--output", "s3://data/results"),
]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with kfp_server() as server:
        yield server


@pytest.fixture(scope="module")
def batch():
    return load_pipeline("vlm_batch_inference_pipeline")


def run(module, *arguments: str) -> int:
    return run_main(
        module.__doc__, module.make_pipeline, add_job_options, module._parameters, list(arguments)
    )


def test_a_dry_run_prints_the_parameters_and_asks_no_server(batch, capsys):
    more = ["--num-shards", "8", "--max-new-tokens", "64", "--parameter", "gpu_count=2"]
    code = run(batch, *JOB, *more, "--host", "http://localhost:1", "--dry-run")
    assert code == 0
    parameters = json.loads(capsys.readouterr().out)
    options = json.loads(parameters.pop("options"))
    assert options == {"generation": {"max_new_tokens": 64}, "name": "shapes"}
    assert parameters == {
        "manifest": "s3://data/shapes.jsonl",
        "model": "s3://models/shapes",
        "output": "s3://data/results",
        "num_shards": 8,
        "gpu_count": 2,
    }


def test_parameters_make_the_spec_again():
    fields = {
        "manifest": "s3://data/shapes.jsonl",
        "model": "m",
        "output": "s3://o",
        "generation": {"max_new_tokens": 64},
        "limits": {"max_failure_rate": 0.5},
    }
    parameters = job_parameters(**fields)
    options = json.loads(parameters.pop("options"))
    assert make_spec({**options, **parameters}) == make_spec(fields)


def test_a_run_is_started_with_both_documents_and_the_parameters(batch, server, capsys):
    code = run(
        batch,
        *JOB,
        *("--host", f"{server.url}/"),
        *("--run-name", "tonight"),
        *("--service-account", "runner"),
        *("--pipeline-root", "s3://kfp/root"),
        *("--image", "registry/vlmflow:9"),
        *("--parallelism", "2"),
        *("--retries", "0"),
        *("--cache-claim", "models"),
        *("--env", "HF_HUB_OFFLINE=1"),
    )
    assert code == 0
    assert capsys.readouterr().out.endswith(f"started {server.url}/#/runs/details/r1\n")
    (sent,) = server.runs
    assert (sent["display_name"], sent["experiment_id"]) == ("tonight", "e1")
    assert sent["service_account"] == "runner"
    assert sent["runtime_config"]["pipeline_root"] == "s3://kfp/root"
    parameters = sent["runtime_config"]["parameters"]
    assert parameters["manifest"] == "s3://data/shapes.jsonl"
    pipeline, platform = (
        sent["pipeline_spec"][part] for part in ("pipeline_spec", "platform_spec")
    )
    executors = pipeline["deploymentSpec"]["executors"]
    images = {e["container"]["image"] for e in executors.values() if "container" in e}
    assert images == {"registry/vlmflow:9"}
    assert '"constant": "models"' in json.dumps(platform)
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in executors["exec-evaluate"]["container"][
        "env"
    ]
    (loop,) = (t for t in pipeline["root"]["dag"]["tasks"].values() if "parameterIterator" in t)
    assert loop["iteratorPolicy"] == {"parallelismLimit": 2}
    assert "retryPolicy" not in str(pipeline["components"]["comp-for-loop-1"])


def test_credentials_are_the_environments(batch, server, monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "the-token")
    monkeypatch.setenv("KF_PIPELINES_COOKIE", "authservice_session=1")
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    assert run(batch, *JOB) == 0
    assert len(server.headers) > 1
    for headers in server.headers:
        assert headers["Cookie"] == "authservice_session=1"
        assert {v for k, v in headers.items() if k.lower() == "authorization"} == {
            "Bearer the-token"
        }


def test_a_server_that_is_not_there_is_one_sentence_and_may_be_tried_again(batch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert run(batch, *JOB, "--host", f"http://127.0.0.1:{port}") == 75
    error = capsys.readouterr().err
    assert "cannot be reached: [Errno 111] Connection refused" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("host", ["localhost:8080", "http://", "http://me:hunter2@kfp", "ftp://x"])
def test_a_host_that_is_none_is_one_sentence(batch, host, capsys):
    assert run(batch, *JOB, "--host", host) == 2
    error = capsys.readouterr().err
    assert "must be a URL such as http://localhost:8080" in error and "hunter2" not in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("health", "code", "sentence"),
    [
        ((401, b"who are you"), 2, "refuses us (401: Unauthorized); give KF_PIPELINES_TOKEN"),
        ((200, b"<html>log in"), 2, "it may be a login page"),
        ((503, b""), 75, "is not well (503"),
    ],
)
def test_a_server_that_is_no_kfp_is_one_sentence(batch, server, capsys, health, code, sentence):
    server.health = health
    assert run(batch, *JOB, "--host", server.url) == code
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1


def test_what_the_server_says_of_a_run_is_handed_on(batch, server, capsys):
    server.run_answer = (400, b'{"error_message": "no such service\\naccount"}')
    assert run(batch, *JOB, "--host", server.url) == 2
    error = capsys.readouterr().err
    assert "refuses the run (400: no such service account)" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (JOB[2:], "--manifest must be given"),
        ([*JOB, "--parameter", "gpus=2"], "--parameter 'gpus=2' must be NAME=VALUE; names: "),
        ([*JOB, "--parameter", "gpu_count=two"], "gpu_count: 'two' is no Integer in JSON"),
        ([*JOB, "--env", "A"], "--env 'A' must be NAME=VALUE"),
        ([*JOB, "--env", "AWS_SECRET_ACCESS_KEY=hunter2"], "as plain text; keep its value in a"),
        ([*JOB, "--mlflow-uri", "http://u:hunter2@m"], "no user, password or query in a pipeline"),
    ],
)
def test_parameters_that_are_not_right_are_one_sentence(batch, arguments, sentence, capsys):
    assert run(batch, *arguments, "--dry-run") == 2
    error = capsys.readouterr().err
    assert sentence in error and "hunter2" not in error
    assert len(error.splitlines()) == 1


def test_nothing_to_do_is_a_usage_error(batch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(batch, *JOB)
    assert ended.value.code == 2
    assert "say --compile FILE, --dry-run or --host URL" in capsys.readouterr().err
