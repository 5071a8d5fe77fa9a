"""A job's run in a real MLflow store: what it holds, how it ends, that it is never in the way."""

import json
import time

import pytest

from tests.job.jobs import FAKE_ENGINE, records, run_job, write_manifest
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.errors import TooManyFailuresError
from vlmflow.job.store import StoreOpener

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for all tests: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.02")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


def stored_run(uri: str, report: dict):
    from mlflow import MlflowClient

    return MlflowClient(uri), MlflowClient(uri).get_run(report["mlflow"]["run_id"])


def test_a_run_holds_what_a_person_would_ask(tmp_path, uri, s3_client, bucket, s3_endpoint):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(buffer, "PNG")
    s3_client.put_object(Bucket=bucket, Key="a.png", Body=buffer.getvalue())
    lines = [
        {"id": f"p{n}", "prompt": str(n), "images": ["a.png"], "expected": "x"} for n in range(90)
    ]
    lines += [{"id": "bad", "prompt": "refuse"}]
    body = "\n".join(json.dumps(line) for line in lines)
    s3_client.put_object(Bucket=bucket, Key="m.jsonl", Body=body.encode())
    report = run_job(
        tmp_path,
        f"s3://{bucket}/m.jsonl",
        f"s3://{bucket}/out",
        endpoint_url=s3_endpoint,
        tracking={"uri": uri, "experiment": "e"},
        price_per_hour=2.5,
    )
    client, run = stored_run(uri, report)
    assert run.info.status == "FINISHED"
    assert run.data.params["engine.dtype"] == "float32"
    assert run.data.params["generation.max_new_tokens"] == "512"
    assert len(run.data.params) <= 40
    assert run.data.tags["job.identity"] == report["job"]["identity"]
    assert run.data.tags["manifest.sha256"] == report["manifest"]["sha256"]
    assert "**90 of 91** records succeeded" in run.data.tags["mlflow.note.content"]
    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.digest == report["manifest"]["sha256"][:36]
    history = client.get_metric_history(run.info.run_id, "records_per_second")
    assert len(history) >= 2
    assert [m.step for m in history] == sorted(m.step for m in history)
    assert history[-1].step == 91
    for name in ("images_per_second", "output_tokens_per_second", "batch_occupancy", "kv_usage",
                 "prefix_hit_rate", "encoder_hit_rate"):  # fmt: skip
        assert name in run.data.metrics
    assert run.data.metrics["batch_occupancy"] == pytest.approx(0.5)
    assert run.data.metrics["records_failed"] == 1
    assert run.data.metrics["exact_match"] == 0
    stored = json.loads(_artifact(client, run, "report.json"))
    assert stored == report
    page = _artifact(client, run, "report.html")
    assert (
        page == StoreOpener(s3_endpoint).open(f"s3://{bucket}/out/m").read("report.html").decode()
    )
    assert run.data.metrics["device_seconds"] == report["time"]["device_seconds"]
    assert run.data.metrics["latency_p99_seconds"] == report["latency_seconds"]["p99"]
    assert run.data.metrics["cost_total"] == report["cost"]["total"]
    table = json.loads(_artifact(client, run, "samples.json"))
    assert len(table["data"]) == 50
    assert table["columns"][:2] == ["id", "image"]


def _artifact(client, run, name: str) -> str:
    with open(client.download_artifacts(run.info.run_id, name)) as file:
        return file.read()


def test_a_failed_job_ends_its_run_as_failed_and_the_next_attempt_goes_on_with_it(tmp_path, uri):
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(3), {"id": "x", "prompt": "refuse"}])
    tracking = {"uri": uri, "experiment": "e"}
    with pytest.raises(TooManyFailuresError):
        run_job(tmp_path, manifest, tmp_path / "out", tracking=tracking)
    kept = json.loads((tmp_path / "out/m/_work/tracking.json").read_text())
    failed = json.loads((tmp_path / "out/m/report.json").read_text())
    assert failed["mlflow"]["run_id"] == kept["run_id"]
    assert stored_run(uri, failed)[1].info.status == "FAILED"
    report = run_job(
        tmp_path, manifest, tmp_path / "out", tracking=tracking, limits={"max_failure_rate": 0.5}
    )
    assert report["mlflow"]["run_id"] == kept["run_id"]
    assert stored_run(uri, report)[1].info.status == "FINISHED"


def test_a_server_that_is_not_there_costs_a_warning_and_not_the_job(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    manifest = write_manifest(tmp_path / "m.jsonl", records(20))
    tracking = {"uri": "http://127.0.0.1:9"}
    report = run_job(tmp_path, manifest, tmp_path / "out", tracking=tracking)
    assert report["counts"]["succeeded"] == 20
    assert "error" in report["mlflow"]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert len(warnings) == 1 and "the job goes on without it" in warnings[0]


def test_an_attached_run_is_left_running(tmp_path, uri, monkeypatch):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.create_experiment(f"attached-{time.time_ns()}")
    run_id = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    manifest = write_manifest(tmp_path / "m.jsonl", records(3))
    report = run_job(tmp_path, manifest, tmp_path / "out", tracking={"uri": uri})
    assert report["mlflow"]["run_id"] == run_id
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["records_succeeded"] == 3
    assert not (tmp_path / "out/m/_work/tracking.json").exists()
