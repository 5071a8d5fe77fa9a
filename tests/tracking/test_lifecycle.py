"""Which run is a job's, on a real server: handed in, begun before, raced for, orphaned, new."""

import json
import threading
import time

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vlmflow.tracking.lifecycle import (
    RunDataset,
    RunDescription,
    connect,
    end_children,
    open_run,
)
from vlmflow.tracking.metric_point import MetricPoint
from vlmflow.tracking.mlflow_run import MAX_PARAMS, MlflowRun

# MLflow's own: a pool of connections that the garbage collector closes.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Register:
    """What the job's store is for: an object that is created once."""

    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id
        self._lock = threading.Lock()

    def read(self) -> str | None:
        return self.run_id

    def create(self, run: MlflowRun) -> str:
        with self._lock:
            self.run_id = self.run_id or run.run_id
            return self.run_id


@pytest.fixture
def client(server) -> MlflowClient:
    return connect(server)


def description(identity: str, part: str = "job", **changes) -> RunDescription:
    values = {
        "name": "job/model/12345678/now",
        "experiment": "tests",
        "tags": {
            "job.identity": identity,
            "output.uri": "s3://bucket/it's out",
            "job.part": part,
            "job.name": "job",
        },
        "params": {"model": "m", "seed": "0"},
        "dataset": RunDataset("job", "s3://bucket/m.jsonl", "0123456789" * 6, {"num_records": 3}),
    }
    return RunDescription(**values | changes)


def runs_of(client: MlflowClient, identity: str) -> dict[str, str]:
    """The status of each run of a job that is not deleted, by id."""
    experiment = client.get_experiment_by_name("tests")
    found = client.search_runs([experiment.experiment_id], f"tags.`job.identity` = '{identity}'")
    return {run.info.run_id: run.info.status for run in found}


def test_a_new_run_tells_what_it_is(client):
    register = Register()
    run = open_run(client, description("new"), register)
    stored = client.get_run(run.run_id)
    assert run.is_ours and register.run_id == run.run_id
    assert stored.info.run_name == "job/model/12345678/now"
    assert stored.info.status == "RUNNING"
    assert stored.data.params == {"model": "m", "seed": "0"}
    assert stored.data.tags["job.name"] == "job"
    [dataset] = stored.inputs.dataset_inputs
    assert dataset.dataset.digest == ("0123456789" * 6)[:36]
    assert json.loads(dataset.dataset.source) == {"uri": "s3://bucket/m.jsonl"}
    assert dataset.tags[0].value == "inference"


def test_a_known_run_goes_on_with_its_metrics_and_parameters(client):
    register = Register()
    first = open_run(client, description("known"), register)
    first.send_points([MetricPoint("records_per_second", 1.5, 10, 1_700_000_000_000)])
    first.end("KILLED")
    more = {"model": "another", "new": "1"}
    again = open_run(client, description("known", params=more), register)
    assert again.run_id == first.run_id
    again.send_points([MetricPoint("records_per_second", 2.5, 20, 1_700_000_001_000)])
    stored = client.get_run(again.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.params == {"model": "m", "seed": "0", "new": "1"}
    history = client.get_metric_history(again.run_id, "records_per_second")
    assert [(m.step, m.value) for m in history] == [(10, 1.5), (20, 2.5)]
    again.end("FINISHED")
    assert runs_of(client, "known") == {first.run_id: "FINISHED"}


def test_a_point_that_is_sent_twice_is_kept_once(client):
    run = open_run(client, description("twice"), Register())
    points = [MetricPoint("a", float(n), n, 1_700_000_000_000 + n) for n in range(5)]
    run.send_points(points)
    run.send_points(points)
    assert len(client.get_metric_history(run.run_id, "a")) == 5


def test_a_run_has_no_more_parameters_than_are_read(client):
    register = Register()
    many = {f"p{n:03d}": "x" * 600 for n in range(70)}
    run = open_run(client, description("params", params=many), register)
    stored = client.get_run(run.run_id).data.params
    assert list(sorted(stored)) == sorted(many)[:MAX_PARAMS]
    assert all(len(value) == 500 for value in stored.values())
    run.log_params({"one_more": "1"})
    assert "one_more" not in client.get_run(run.run_id).data.params


def test_the_orphan_of_a_killed_attempt_is_closed_and_no_other_run_is(client):
    # The kill came between the run's creation and the note of it.
    orphan = open_run(client, description("orphan"), Register())
    tags = description("orphan").tags | {"output.uri": "s3://bucket/other"}
    elsewhere = open_run(client, description("orphan", tags=tags), Register())
    shard = open_run(client, description("orphan", "shard-00001"), Register())
    run = open_run(client, description("orphan"), Register())
    assert runs_of(client, "orphan") == {
        orphan.run_id: "KILLED",
        run.run_id: "RUNNING",
        elsewhere.run_id: "RUNNING",
        shard.run_id: "RUNNING",
    }


def test_of_workers_that_begin_together_all_have_the_same_run(client):
    register, runs, barrier = Register(), [], threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        runs.append(open_run(connect(client.tracking_uri), description("race"), register))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.run_id for run in runs} == {register.run_id}
    assert runs_of(client, "race") == {register.run_id: "RUNNING"}


def test_a_run_that_this_server_does_not_know_is_found_by_the_identity_or_begun(client):
    elsewhere = Register("0" * 32)
    run = open_run(client, description("moved"), elsewhere)
    assert run.is_ours and run.run_id != "0" * 32
    run.end("KILLED")
    again = open_run(client, description("moved"), elsewhere)
    assert again.run_id == run.run_id
    client.delete_run(run.run_id)
    anew = open_run(client, description("moved"), elsewhere)
    assert anew.run_id != run.run_id
    assert runs_of(client, "moved") == {anew.run_id: "RUNNING"}


def test_a_server_that_is_away_has_forgotten_nothing(proxy):
    client = connect(proxy.url)
    register = Register()
    first = open_run(client, description("away"), register)
    proxy.is_down = True
    with pytest.raises(MlflowException):
        open_run(client, description("away"), register)
    proxy.is_down = False
    assert open_run(client, description("away"), register).run_id == first.run_id
    assert len(runs_of(client, "away")) == 1


def test_a_run_handed_in_is_written_to_and_never_ended(client):
    other = open_run(client, description("theirs"), Register())
    register = Register()
    run = open_run(client, description("attached"), register, attached=other.run_id)
    assert run.run_id == other.run_id and not run.is_ours and register.run_id is None
    run.end("FINISHED")
    stored = client.get_run(run.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.tags["job.identity"] == "attached"


def test_shards_lie_below_their_parent_and_end_with_it(client):
    parent = open_run(client, description("sharded"), Register())
    shards = [
        open_run(client, description("sharded", f"shard-0000{n}"), Register(), parent=parent)
        for n in range(3)
    ]
    shards[0].end("FAILED")
    end_children(parent, "FINISHED")
    stored = [client.get_run(run.run_id) for run in shards]
    assert [run.info.status for run in stored] == ["FAILED", "FINISHED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in stored} == {parent.run_id}
    assert client.get_run(parent.run_id).info.status == "RUNNING"


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_artifacts_of_a_local_database_lie_beside_it_wherever_the_command_ran(
    tmp_path, monkeypatch
):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    run = open_run(client, description("local"), Register())
    run.log_json({"schema_version": 1}, "report.json")
    assert list(folder.iterdir()) == []
    [file] = (tmp_path / "mlartifacts").rglob("report.json")
    assert json.loads(file.read_text()) == {"schema_version": 1}


def test_a_server_that_asks_for_an_hour_is_not_given_one(proxy, monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    client = connect(proxy.url)
    proxy.status = 429
    start = time.monotonic()
    with pytest.raises(MlflowException):
        open_run(client, description("busy"), Register())
    assert time.monotonic() - start < 15
    assert proxy.num_requests == 2
