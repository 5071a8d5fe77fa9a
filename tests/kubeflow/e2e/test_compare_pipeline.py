"""The compare pipeline as it lies in the repository, on two runs that were really done."""

import pytest

from tests.kubeflow.e2e.world import World, checked_in, steps
from vlmflow.kubeflow.batch_inference.component import batch_inference
from vlmflow.kubeflow.plan_shards.component import plan_shards

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(1200)]

NAME = "vlm_compare_pipeline"


@pytest.fixture(scope="module")
def runs(world: World) -> dict[str, str]:
    """One run of few records, and one that may write too little to answer any of them rightly."""
    parameters = {
        "baseline": world.job("baseline", num_good=8),
        "candidate": world.job("candidate", num_good=8, max_new_tokens=1),
    }
    places = {}
    with world.kubeflow():
        for name, given in parameters.items():
            plan = plan_shards(**given).outputs
            batch_inference(spec=plan["spec"], manifest_sha256=plan["manifest_sha256"])
            places[name] = plan["job_uri"]
    return places


def test_a_run_that_is_as_good_passes_and_nobody_is_alerted(world, runs):
    gate = "exact_match >= -0.01 and exact_match >= 0.9"
    same = {"baseline": runs["baseline"], "candidate": runs["baseline"]}
    with world.kubeflow() as containers:
        checked_in(NAME)(**same, gate=gate, endpoint_url=world.s3)
    assert steps(containers) == [("vlmflow evaluate", 0), ("vlmflow compare", 0)]


def test_a_run_that_is_worse_fails_by_its_alert(world, runs):
    with world.kubeflow() as containers, pytest.raises(RuntimeError, match="'alert'"):
        checked_in(NAME)(**runs, gate="exact_match >= -0.01", endpoint_url=world.s3)
    assert steps(containers) == [
        ("vlmflow evaluate", 0),
        ("vlmflow compare", 0),
        ("python -c", 1),
    ]
    told = containers.ended[-1].output
    assert told.startswith(f"{runs['candidate']} is worse than it may be: exact_match >= -0.01:")
