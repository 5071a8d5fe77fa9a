"""Kill -9 at every named point, every way of going on, and every record has exactly one result.

`make chaos` runs them all; a sample of one in twenty is in `make test`.
"""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.job.chaos.chaos_job import LONG, SHORT, ChaosJob, JobServer
from tests.job.chaos.scenarios import ORDERS, SAMPLE, SCENARIOS, Scenario

pytestmark = pytest.mark.process


def play(scenario: Scenario, job: ChaosJob, expected: dict[str, Any]) -> None:
    """Kill the job as often as the scenario says, go on with it, look at what it left."""
    again: tuple[str, ...] = ()
    if scenario.kind == "rerun":
        job.run(())
        again = ("--rerun-failed",)
    for point in scenario.kills:
        job.kill_at(point, *again)
    job.run(*((*more, *again) for more in ORDERS[scenario.order]))
    job.check(expected[scenario.kind])


def make_job(scenario: Scenario, server: JobServer, folder: Path, **place: Any) -> ChaosJob:
    is_long = scenario.kind == "long"
    return ChaosJob(
        server,
        folder / "job",
        lines=LONG if is_long else SHORT,
        commit_records=1 if is_long else 4,
        num_shards=2 if scenario.order == "shards" else 1,
        **place,
    )


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(s, id=str(s), marks=() if s in SAMPLE else pytest.mark.slow) for s in SCENARIOS],
)
def test_a_job_killed_anywhere_ends_with_one_result_a_record(
    scenario, job_server, expected, tmp_path, request
):
    if scenario.store == "s3":
        bucket = request.getfixturevalue("chaos_bucket")
        place = {
            "output": f"s3://{bucket}/{uuid4().hex}",
            "endpoint": request.getfixturevalue("s3_endpoint"),
        }
    else:
        place = {"output": str(tmp_path / "out")}
    play(scenario, make_job(scenario, job_server, tmp_path, **place), expected)


def test_there_are_enough_of_them():
    assert len(SCENARIOS) >= 300
    assert len(SAMPLE) >= 15
    assert {s.store for s in SAMPLE} == {"folder", "s3"}
    assert {s.order for s in SAMPLE} == set(ORDERS)
    assert {s.kind for s in SAMPLE} == {"short", "long", "rerun"}
