"""The batch pipeline as it lies in the repository, from a manifest to what is behind the gate."""

from dataclasses import replace

import pytest

from tests.kubeflow.e2e.world import NUM_GOOD, World, checked_in, steps
from tools.kubeflow_files import load_pipeline
from vlmflow.kubeflow.step_task import Retry

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.timeout(1200),
    # What is for Kubernetes alone: GPUs, memory, names for its pages.
    pytest.mark.filterwarnings("ignore:Task .* have no effect in the current local runner"),
    # The importer names objects on S3; nobody opens them here.
    pytest.mark.filterwarnings("ignore:It looks like you're using the remote file"),
]

NAME = "vlm_batch_inference_pipeline"
JOB = "pipeline"
UP_TO_GATE = [
    ("vlmflow plan", 0),
    *[("vlmflow run", 0)] * 4,
    ("vlmflow merge", 0),
    ("vlmflow evaluate", 0),
    ("vlmflow compare", 0),
]
PUBLISHED = "Task \x1b[96m'importer'\x1b[0m finished with status \x1b[92mSUCCESS"


@pytest.fixture(scope="module")
def parameters(world: World) -> dict:
    return world.job(JOB, num_shards=4)


def test_a_manifest_in_four_shards_is_answered_scored_and_published(world, parameters, capsys):
    with world.kubeflow() as containers:
        checked_in(NAME)(**parameters)
    assert steps(containers) == UP_TO_GATE
    assert sorted(word for c in containers.ended for word in c.command if "--shard=" in word) == [
        f"--shard={n}/4" for n in range(4)
    ]
    assert PUBLISHED in capsys.readouterr().out
    world.check_job(JOB)
    report = world.report(JOB)
    assert (report["counts"]["succeeded"], report["counts"]["failed"]) == (NUM_GOOD, 1)
    assert len(report["attempts"]) == 4
    run = world.mlflow_run(report["mlflow"]["run_id"])
    assert run["info"]["status"] == "FINISHED"
    logged = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert (logged["records_succeeded"], logged["records_failed"]) == (NUM_GOOD, 1)
    assert logged["eval_exact_match"] == 1.0
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["manifest.uri"] == f"s3://demo/shapes/{JOB}.jsonl"
    assert tags["kfp.task_name"] == "batch-inference"


def test_behind_a_gate_that_does_not_hold_the_alert_runs_and_nothing_is_published(
    world, parameters, capsys
):
    """The same job once more: its shards are done, and no record is asked again."""
    with world.kubeflow() as containers, pytest.raises(RuntimeError, match="'alert'"):
        checked_in(NAME)(**parameters, gate="exact_match > 1")
    assert steps(containers) == [*UP_TO_GATE, ("python -c", 1)]
    told = containers.ended[-1].output
    assert told.startswith(f"s3://demo/results/{JOB} is not published: exact_match > 1: not passed")
    assert PUBLISHED not in capsys.readouterr().out
    world.check_job(JOB)


def test_a_plan_that_fails_is_tried_again_in_vain_and_nothing_after_it_runs(world):
    parameters = world.job("absent") | {"manifest": "s3://demo/shapes/none.jsonl"}
    module = load_pipeline(NAME)
    retried = replace(module.PIPELINE_DEFAULTS.steps, retry=Retry(1, "1s", 1.0, "1s"))
    settings = replace(module.PIPELINE_DEFAULTS, steps=retried)
    with world.kubeflow() as containers, pytest.raises(RuntimeError, match="'plan-shards'"):
        module.make_pipeline(settings)(**parameters)
    assert steps(containers) == [("vlmflow plan", 2)] * 2
    assert "s3://demo/shapes/none.jsonl" in containers.ended[0].output
    assert not world.keys("results/absent/")
