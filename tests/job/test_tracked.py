"""A job's run on a real MLflow server: what it holds, how it ends, that it is never in the way."""

import io
import json
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.job.jobs import FAKE_ENGINE, make_model, records, run_job, start_job, write_manifest
from tests.mlflow_proxy import Proxy, proxy_to
from tools.loopback_mlflow import loopback_mlflow
from vlmflow.cli import main
from vlmflow.job.crash_points import CRASH_VARIABLE
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.errors import TooManyFailuresError
from vlmflow.job.run import Assignment
from vlmflow.job.store import StoreOpener

# MLflow's own: a pool of connections that the garbage collector closes.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all tests: starting it takes seconds."""
    with loopback_mlflow(tmp_path_factory.mktemp("mlflow") / "server") as url:
        yield url


@pytest.fixture
def proxy(server) -> Proxy:
    """A way to it on which things go wrong."""
    with proxy_to(server) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.02")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


@pytest.fixture
def pictures(s3_client, bucket) -> str:
    """A manifest on S3 of 120 records with a picture each, of which 30 fail."""
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(buffer, "PNG")
    s3_client.put_object(Bucket=bucket, Key="a.png", Body=buffer.getvalue())
    lines = [
        {"id": f"p{n}", "prompt": str(n), "images": ["a.png"], "expected": "x"} for n in range(90)
    ]
    lines += [{"id": f"bad{n}", "prompt": f"refuse {n}"} for n in range(29)]
    lines += [{"id": "gone", "prompt": "x", "images": ["gone.png"]}]
    body = "\n".join(json.dumps(line) for line in lines)
    s3_client.put_object(Bucket=bucket, Key="m.jsonl", Body=body.encode())
    return f"s3://{bucket}/m.jsonl"


def stored_run(uri: str, report: dict):
    from mlflow import MlflowClient

    return MlflowClient(uri), MlflowClient(uri).get_run(report["mlflow"]["run_id"])


def artifact(client, run, name: str) -> str:
    return Path(client.download_artifacts(run.info.run_id, name)).read_text()


def runs_of(uri: str, experiment: str) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_a_run_holds_what_a_person_would_ask(
    tmp_path, server, pictures, bucket, s3_endpoint, monkeypatch
):
    monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "my_dag")
    monkeypatch.setenv("AIRFLOW_CTX_TASK_ID", "infer")
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "manual__1")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    report = run_job(
        tmp_path,
        pictures,
        f"s3://{bucket}/out",
        endpoint_url=s3_endpoint,
        tracking={"uri": server, "experiment": "whole"},
        limits={"max_failure_rate": 0.5},
        price_per_hour=2.5,
    )
    client, run = stored_run(server, report)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith(f"m/model/{report['manifest']['sha256'][:8]}/")
    assert run.data.params["engine.dtype"] == "float32"
    assert run.data.params["generation.max_new_tokens"] == "512"
    assert len(run.data.params) <= 40
    tags = run.data.tags
    assert tags["job.identity"] == report["job"]["identity"]
    assert tags["manifest.sha256"] == report["manifest"]["sha256"]
    assert tags["airflow.dag_id"] == "my_dag"
    note = tags["mlflow.note.content"]
    assert "**90 of 120** records succeeded" in note
    link = "https://airflow.example/dags/my_dag/runs/manual__1/tasks/infer"
    assert f"[Airflow task]({link})" in note
    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.digest == report["manifest"]["sha256"][:36]
    history = client.get_metric_history(run.info.run_id, "records_per_second")
    assert len(history) >= 2
    assert [m.step for m in history] == sorted(m.step for m in history)
    assert history[-1].step == 120
    for name in ("images_per_second", "output_tokens_per_second", "batch_occupancy", "kv_usage",
                 "prefix_hit_rate", "encoder_hit_rate"):  # fmt: skip
        assert name in run.data.metrics
    final = run.data.metrics
    assert final["batch_occupancy"] == pytest.approx(0.5)
    assert final["records_failed"] == 30
    assert final["exact_match"] == 0
    assert final["device_seconds"] == report["time"]["device_seconds"]
    assert final["latency_p99_seconds"] == report["latency_seconds"]["p99"]
    assert final["cost_total"] == report["cost"]["total"]
    assert final["first_result_seconds"] > 0
    assert json.loads(artifact(client, run, "report.json")) == report
    config = json.loads(artifact(client, run, "config.json"))
    assert config["limits"]["max_failure_rate"] == 0.5
    stored = StoreOpener(s3_endpoint).open(f"s3://{bucket}/out/m")
    assert artifact(client, run, "report.html") == stored.read("report.html").decode()
    plots = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
    assert {"plots/throughput.png", "plots/time.png"} <= plots
    listed = json.loads(tags["mlflow.loggedArtifacts"])
    assert [table["path"] for table in listed] == ["samples.json", "failures.json"]


def test_tables_have_pictures_and_every_class_of_failure(
    tmp_path, server, pictures, bucket, s3_endpoint
):
    report = run_job(
        tmp_path,
        pictures,
        f"s3://{bucket}/out",
        endpoint_url=s3_endpoint,
        tracking={"uri": server, "experiment": "tables"},
        limits={"max_failure_rate": 0.5},
    )
    client, run = stored_run(server, report)
    samples = json.loads(artifact(client, run, "samples.json"))
    assert len(samples["data"]) == 50
    assert samples["columns"][:2] == ["id", "image"]
    path = client.download_artifacts(run.info.run_id, samples["data"][0][1]["filepath"])
    with Image.open(path) as picture:
        assert picture.size == (160, 107) and picture.convert("RGB").getpixel((5, 5))[0] > 250
    failures = json.loads(artifact(client, run, "failures.json"))
    rows = [dict(zip(failures["columns"], row, strict=True)) for row in failures["data"]]
    assert [row["class"] for row in rows].count("prompt_too_long") == 29
    [gone] = [row for row in rows if row["class"] == "image_not_found"]
    assert gone["images"] == "gone.png" and gone["id"] == "gone"


def test_all_results_are_in_mlflow_or_where_they_are(tmp_path, server):
    import pyarrow.parquet

    lines = [*records(30), {"id": "x", "prompt": "refuse", "colour": "red"}]
    manifest = write_manifest(tmp_path / "m.jsonl", lines)
    tracking = {"uri": server, "experiment": "results"}
    report = run_job(tmp_path, manifest, tmp_path / "out", tracking=tracking)
    client, run = stored_run(server, report)
    path = client.download_artifacts(run.info.run_id, "results.parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["id"] for row in rows] == [line["id"] for line in lines]
    assert rows[3]["status"] == "succeeded" and json.loads(rows[3]["expected"]) == "3"
    assert rows[30]["status"] == "failed" and rows[30]["error_class"] == "prompt_too_long"
    assert json.loads(rows[30]["metadata"]) == {"colour": "red"}
    written = [
        json.loads(line)
        for line in (tmp_path / "out/m/results/00000.jsonl").read_text().splitlines()
    ]
    assert [row["text"] for row in rows[:30]] == [line["text"] for line in written]

    report = run_job(
        tmp_path, manifest, tmp_path / "small", tracking=tracking | {"results_max_bytes": 1000}
    )
    client, run = stored_run(server, report)
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert "results.parquet" not in names
    pointer = json.loads(artifact(client, run, "results_pointer.json"))
    assert (pointer["records"], pointer["succeeded"], pointer["failed"]) == (31, 30, 1)
    [failures, results] = pointer["files"]
    assert results["uri"] == str(tmp_path / "small/m/results/00000.jsonl")
    from hashlib import sha256

    data = Path(results["uri"]).read_bytes()
    assert results["sha256"] == sha256(data).hexdigest()
    assert results["num_bytes"] == len(data) and results["num_lines"] == 30
    assert pointer["num_bytes"] == results["num_bytes"] + failures["num_bytes"]


def test_jobs_of_one_checkpoint_share_a_model_and_another_has_its_own(tmp_path, server):
    from mlflow import MlflowClient

    manifest = write_manifest(tmp_path / "m.jsonl", records(5))
    tracking = {"uri": server, "experiment": "models"}
    reports = [
        run_job(tmp_path, manifest, tmp_path / f"out{n}", tracking=tracking) for n in range(2)
    ]
    other = make_model(tmp_path / "other")
    (other / "config.json").write_text('{"another": true}')
    more = {"model": str(other), "tracking": tracking}
    reports.append(run_job(tmp_path, manifest, tmp_path / "out2", **more))
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("models").experiment_id
    models = client.search_logged_models([experiment])
    assert len(models) == 2
    first = client.get_run(reports[0]["mlflow"]["run_id"])
    [used] = first.inputs.model_inputs
    [model] = [model for model in models if model.model_id == used.model_id]
    measured = {m.run_id for m in model.metrics if m.key == "final_records_per_second"}
    assert measured == {report["mlflow"]["run_id"] for report in reports[:2]}
    assert model.params["dtype"] == "float32"
    assert {m.dataset_digest for m in model.metrics} == {reports[0]["manifest"]["sha256"][:36]}


def test_a_failed_job_ends_its_run_as_failed_and_the_next_attempt_goes_on_with_it(tmp_path, server):
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(3), {"id": "x", "prompt": "refuse"}])
    tracking = {"uri": server, "experiment": "failed"}
    with pytest.raises(TooManyFailuresError):
        run_job(tmp_path, manifest, tmp_path / "out", tracking=tracking)
    kept = json.loads((tmp_path / "out/m/_work/tracking.json").read_text())
    failed = json.loads((tmp_path / "out/m/report.json").read_text())
    assert failed["mlflow"]["run_id"] == kept["run_id"]
    assert stored_run(server, failed)[1].info.status == "FAILED"
    report = run_job(
        tmp_path, manifest, tmp_path / "out", tracking=tracking, limits={"max_failure_rate": 0.5}
    )
    assert report["mlflow"]["run_id"] == kept["run_id"]
    client, run = stored_run(server, report)
    assert run.info.status == "FINISHED"
    # A page that is logged twice says everything once.
    assert len(json.loads(artifact(client, run, "samples.json"))["data"]) == 3


def test_an_attached_run_is_left_running(tmp_path, server, monkeypatch):
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.create_experiment(f"attached-{time.time_ns()}")
    run_id = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    manifest = write_manifest(tmp_path / "m.jsonl", records(3))
    report = run_job(tmp_path, manifest, tmp_path / "out", tracking={"uri": server})
    assert report["mlflow"]["run_id"] == run_id
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["records_succeeded"] == 3
    assert len(run.inputs.dataset_inputs) == 1
    assert not (tmp_path / "out/m/_work/tracking.json").exists()


def test_shards_have_runs_of_their_own_and_the_parent_has_the_sums(tmp_path, server):
    manifest = write_manifest(tmp_path / "m.jsonl", records(60))
    tracking = {"uri": server, "experiment": "shards"}
    for number in (1, 0, 2):
        report = run_job(
            tmp_path,
            manifest,
            tmp_path / "out",
            Assignment(shard=number),
            num_shards=3,
            tracking=tracking,
        )
    assert report is not None
    client, parent = stored_run(server, report)
    children = {
        run.data.tags["job.part"]: run
        for run in runs_of(server, "shards")
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert sorted(children) == ["shard-00000", "shard-00001", "shard-00002"]
    assert len(runs_of(server, "shards")) == 4
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    for run in children.values():
        history = client.get_metric_history(run.info.run_id, "records_per_second")
        assert history[-1].step == 20
        assert "records_total" not in run.data.metrics
    assert parent.data.metrics["records_total"] == 60
    summed = client.get_metric_history(parent.info.run_id, "records_per_second")
    assert [m.step for m in summed] == sorted(m.step for m in summed)
    assert summed[-1].step == 60
    assert all(m.timestamp > parent.info.start_time - 60_000 for m in summed)


@pytest.mark.process
@pytest.mark.timeout(400)
def test_sigterm_and_a_kill_end_as_killed_and_steps_go_on_rising(tmp_path, server, monkeypatch):
    manifest = write_manifest(tmp_path / "m.jsonl", records(3000))
    make_model(tmp_path / "model")
    arguments = [
        "--manifest", str(manifest), "--model", str(tmp_path / "model"), "--output",
        str(tmp_path / "out"), "--mlflow-uri", server, "--experiment", "killed",
        "--commit-seconds", "0.5",
    ]  # fmt: skip
    # Killed after its run was created and before that was written down: an orphan.
    first = start_job(
        arguments, FAKE_ENGINE_SECONDS="0.02", **{CRASH_VARIABLE: "tracking-run-opened"}
    )
    first.communicate(timeout=120)
    assert first.returncode == -signal.SIGKILL
    [orphan] = runs_of(server, "killed")
    assert orphan.info.status == "RUNNING"
    second = start_job(arguments, FAKE_ENGINE_SECONDS="0.05")
    tracking_file = tmp_path / "out/m/_work/tracking.json"
    progress = tmp_path / "out/m/_work/progress"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done = [json.loads(p.read_text())["done"] for p in progress.glob("*.json")]
        if tracking_file.exists() and max(done, default=0) > 100:
            break
        time.sleep(0.1)
    second.send_signal(signal.SIGTERM)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 75, errors
    run_id = json.loads(tracking_file.read_text())["run_id"]
    status = {run.info.run_id: run.info.status for run in runs_of(server, "killed")}
    assert status == {orphan.info.run_id: "KILLED", run_id: "KILLED"}
    third = start_job(arguments, FAKE_ENGINE_SECONDS="0")
    _, errors = third.communicate(timeout=120)
    assert third.returncode == 0, errors
    status = {run.info.run_id: run.info.status for run in runs_of(server, "killed")}
    assert status == {orphan.info.run_id: "KILLED", run_id: "FINISHED"}
    from mlflow import MlflowClient

    history = MlflowClient(server).get_metric_history(run_id, "records_per_second")
    in_time = sorted(history, key=lambda m: m.timestamp)
    assert [m.step for m in in_time] == sorted(m.step for m in history)
    assert in_time[-1].step == 3000 and len({m.step for m in history}) > 2


def test_a_server_that_is_down_loses_nothing_that_is_not_sent_later(
    tmp_path, proxy, capsys, monkeypatch
):
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.05")
    manifest = write_manifest(tmp_path / "m.jsonl", records(60))
    tracking = {"uri": proxy.url, "experiment": "down"}
    proxy.is_down = True
    report = run_job(tmp_path, manifest, tmp_path / "out", tracking=tracking)
    assert report["counts"]["succeeded"] == 60
    assert "error" in report["mlflow"]
    told = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    folder = tmp_path / "out/m"
    assert len(told) == 2 and "the job goes on without it" in told[0]
    assert f"vlmflow track --replay {folder}" in told[1]
    spooled = [
        json.loads(line)
        for path in (folder / "_work/spool").rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    rates = [point for point in spooled if point["key"] == "records_per_second"]
    assert len(rates) >= 3 and rates[-1]["step"] == 60

    replay = ["track", "--replay", str(folder), "--mlflow-uri", proxy.url]
    assert main(replay) == 2
    assert "the same command goes on" in capsys.readouterr().err
    proxy.is_down = False
    assert main(replay) == 0
    assert "is complete" in capsys.readouterr().out
    [run] = runs_of(proxy.url, "down")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["records_succeeded"] == 60
    client, _ = stored_run(proxy.url, {"mlflow": {"run_id": run.info.run_id}})
    history = client.get_metric_history(run.info.run_id, "records_per_second")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (p["step"], p["value"], p["timestamp_ms"]) for p in rates
    ]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "samples.json", "results.parquet", "plots"} <= names
    assert list((folder / "_work/spool").rglob("*.jsonl")) == []
    assert main(replay) == 0
    assert "nothing is lacking" in capsys.readouterr().out


def test_a_server_that_is_busy_for_a_while_has_everything_in_the_end(tmp_path, proxy, monkeypatch):
    import threading

    from vlmflow.tracking import breaker

    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 0.3)
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.1")
    manifest = write_manifest(tmp_path / "m.jsonl", records(60))

    def be_busy() -> None:
        proxy.status = 429

    def be_well() -> None:
        proxy.status = 0

    timers = [threading.Timer(3.0, be_busy), threading.Timer(5.0, be_well)]
    for timer in timers:
        timer.start()
    tracking = {"uri": proxy.url, "experiment": "busy"}
    report = run_job(tmp_path, manifest, tmp_path / "out", tracking=tracking)
    for timer in timers:
        timer.join()
    client, run = stored_run(proxy.url, report)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "records_per_second")
    moments = sorted(m.timestamp for m in history)
    gaps = [after - before for before, after in zip(moments, moments[1:], strict=False)]
    assert len(moments) >= 5 and max(gaps) < 2500, "what was measured meanwhile is there too"
    assert list((tmp_path / "out/m/_work").rglob("*.jsonl")) != []
    assert not (tmp_path / "out/m/_work/unlogged.json").exists()


def test_a_server_that_takes_its_time_is_not_waited_for(tmp_path, proxy):
    manifest = write_manifest(tmp_path / "m.jsonl", records(60))
    proxy.seconds = 30
    tracking = {"uri": proxy.url, "experiment": "slow", "end_seconds": 1.0}
    start = time.monotonic()
    report = run_job(tmp_path, manifest, tmp_path / "out", tracking=tracking)
    assert time.monotonic() - start < 15
    assert report["counts"]["succeeded"] == 60
    spooled = [p.read_text() for p in (tmp_path / "out/m/_work/spool").rglob("*.jsonl")]
    assert "records_per_second" in "".join(spooled)
    assert json.loads((tmp_path / "out/m/_work/unlogged.json").read_text()) == {
        "status": "FINISHED"
    }


def test_a_job_that_was_told_no_mlflow_can_be_logged_later(tmp_path, server, capsys):
    manifest = write_manifest(tmp_path / "m.jsonl", records(5))
    run_job(tmp_path, manifest, tmp_path / "out")
    arguments = ["track", "--replay", str(tmp_path / "out/m"), "--mlflow-uri", server]
    assert main(arguments) == 0
    assert "nothing is lacking" in capsys.readouterr().out
    assert main([*arguments, "--whole", "--experiment", "later"]) == 0
    [run] = runs_of(server, "later")
    assert run.data.metrics["records_succeeded"] == 5 and run.info.status == "FINISHED"


def test_a_folder_without_a_job_is_told_in_a_sentence(tmp_path, capsys):
    assert main(["track", "--replay", str(tmp_path)]) == 2
    assert "holds no job" in capsys.readouterr().err
