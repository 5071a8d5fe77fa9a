"""Against a real MLflow store in SQLite: what a run says, how it goes on, whose it is."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from vlmflow.tracking.mlflow_run import MlflowClient, RunDescription, open_run
from vlmflow.tracking.side_thread import MetricPoint

# MLflow's own: how it uses SQLAlchemy, and a pool that the garbage collector closes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for all tests: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def no_attached_run(monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


def description(**changes) -> RunDescription:
    values = {
        "name": "job/model/12345678/now",
        "experiment": "tests",
        "tags": {"job.name": "job", "job.identity": "abc"},
        "params": {"model": "m", "seed": "0"},
        "dataset_name": "job",
        "dataset_uri": "s3://bucket/m.jsonl",
        "dataset_digest": "0123456789" * 6,
        "dataset_profile": {"num_records": 3},
    }
    return RunDescription(**values | changes)


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_new_run_tells_what_it_is(uri):
    run = open_run(uri, None, description())
    stored = MlflowClient(uri).get_run(run.run_id)
    assert run.is_ours
    assert stored.info.run_name == "job/model/12345678/now"
    assert stored.info.status == "RUNNING"
    assert stored.data.params == {"model": "m", "seed": "0"}
    assert stored.data.tags["job.identity"] == "abc"
    [dataset] = stored.inputs.dataset_inputs
    assert dataset.dataset.digest == ("0123456789" * 6)[:36]
    assert json.loads(dataset.dataset.source) == {"uri": "s3://bucket/m.jsonl"}
    assert dataset.tags[0].value == "inference"


def test_a_known_run_goes_on_with_its_metrics_and_parameters(uri):
    first = open_run(uri, None, description())
    first.send_points([MetricPoint("records_per_second", 1.5, 10, 1_700_000_000_000)])
    first.end("KILLED")
    again = open_run(uri, first.run_id, description(params={"model": "m", "seed": "0", "new": "1"}))
    assert again.run_id == first.run_id
    again.send_points([MetricPoint("records_per_second", 2.5, 20, 1_700_000_001_000)])
    client = MlflowClient(uri)
    assert client.get_run(again.run_id).info.status == "RUNNING"
    assert client.get_run(again.run_id).data.params["new"] == "1"
    history = client.get_metric_history(again.run_id, "records_per_second")
    assert [(m.step, m.value) for m in history] == [(10, 1.5), (20, 2.5)]
    again.end("FINISHED")
    assert client.get_run(again.run_id).info.status == "FINISHED"


def test_a_run_that_this_server_does_not_know_is_begun_anew(uri):
    run = open_run(uri, "0" * 32, description())
    assert run.is_ours and run.run_id != "0" * 32


def test_a_run_handed_in_by_the_environment_is_written_to_and_never_ended(uri, monkeypatch):
    other = open_run(uri, None, description(name="somebody's"))
    monkeypatch.setenv("MLFLOW_RUN_ID", other.run_id)
    run = open_run(uri, "0" * 32, description())
    assert run.run_id == other.run_id and not run.is_ours
    run.end("FINISHED")
    stored = MlflowClient(uri).get_run(run.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.tags["job.name"] == "job"


def test_artifacts_lie_beside_the_database_wherever_the_command_ran(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run(uri, None, description())
    run.log_json({"schema_version": 1}, "report.json")
    assert list(tmp_path.iterdir()) == []
    path = MlflowClient(uri).download_artifacts(run.run_id, "report.json")
    assert json.loads(Path(path).read_text()) == {"schema_version": 1}


def test_a_table_shows_its_pictures(uri):
    run = open_run(uri, None, description())
    rows = [{"id": name, "image": png(name), "text": name} for name in ("red", "blue")]
    run.log_table(rows, "samples.json")
    client = MlflowClient(uri)
    path = client.download_artifacts(run.run_id, "samples.json")
    table = json.loads(Path(path).read_text())
    assert table["columns"] == ["id", "image", "text"]
    [first, _] = table["data"]
    assert first[0] == "red"
    picture = client.download_artifacts(run.run_id, first[1]["filepath"])
    assert Image.open(picture).getpixel((0, 0)) == (255, 0, 0)
