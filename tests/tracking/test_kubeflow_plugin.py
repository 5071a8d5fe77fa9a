"""Steps of a pipeline under KFP's MLflow plugin, which gives each a run of its own and ends it.

The plugin (KFP 2.17) sets these variables in a step's container, and MLFLOW_WORKSPACE where the
server has workspaces; what it does itself is played by the test.
"""

import pytest

from tests.job.jobs import FAKE_ENGINE, make_model, records, write_manifest
from vlmflow.cli import main
from vlmflow.job.engine_process import COMMAND_VARIABLE

# MLflow's own: a pool of connections that the garbage collector closes.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_each_step_writes_to_the_run_it_was_given_and_leaves_it_running(
    tmp_path, server, monkeypatch
):
    from mlflow import MlflowClient

    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    client = MlflowClient(server)
    experiment = client.create_experiment("kfp-plugin")
    parent = client.create_run(experiment, tags={"kfp.pipeline_run_id": "r1"}).info.run_id

    def begin_step(name: str) -> str:
        """As KFP's driver does."""
        tags = {"mlflow.parentRunId": parent}
        run_id: str = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        for variable, value in {
            "MLFLOW_RUN_ID": run_id,
            "MLFLOW_TRACKING_URI": server,
            "MLFLOW_EXPERIMENT_ID": experiment,
        }.items():
            monkeypatch.setenv(variable, value)
        return run_id

    manifest = write_manifest(tmp_path / "m.jsonl", records(6))
    job = ["--output", str(tmp_path / "out")]
    words = ["--manifest", str(manifest), "--model", str(make_model(tmp_path / "model")), *job]
    words += ["--mlflow-traces", "0", "--mlflow-results-max", "0"]  # a small page is a fast one
    given = []
    for shard in ("0/2", "1/2"):
        given.append(begin_step(f"batch-inference-{shard}"))
        assert main(["run", "--executor-input", "{}", *words, "--shard", shard]) == 0
        assert client.get_run(given[-1]).info.status == "RUNNING"
    given.append(begin_step("merge-report"))
    run_id = tmp_path / "mlflow_run_id"
    asked = f'{{"outputs": {{"parameters": {{"mlflow_run_id": {{"outputFile": "{run_id}"}}}}}}}}'
    assert main(["merge", "--executor-input", asked, *job, "--name", "m"]) == 0

    assert {client.get_run(one).info.status for one in [parent, *given]} == {"RUNNING"}
    # Whose step did the last shard has the sums; no run of ours stands beside the plugin's.
    assert run_id.read_text() == given[1]
    assert client.get_run(given[1]).data.metrics["records_succeeded"] == 6
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    ours = set(runs) - {parent, *given}
    assert sorted(runs[one].data.tags["job.part"] for one in ours) == ["shard-00000", "shard-00001"]
    for number, shard_run in enumerate(
        sorted(ours, key=lambda one: runs[one].data.tags["job.part"])
    ):
        assert runs[shard_run].data.tags["mlflow.parentRunId"] == given[number]
        assert runs[shard_run].info.status == "FINISHED"
    others = [e for e in client.search_experiments() if e.name not in ("kfp-plugin", "Default")]
    assert others == []
