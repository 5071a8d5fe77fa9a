"""A task that somebody marks as failed in its midst: nothing runs on, and a retry goes on."""

import json

import pytest

from tests.airflow.e2e.world import DAG, World, is_alive, wait_until

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

RUN = "killed"
NUM_GOOD = 256


def test_a_killed_task_leaves_no_process_and_its_retry_goes_on_from_the_commits(world: World):
    expected = world.write_manifest(RUN, NUM_GOOD)
    world.trigger(
        RUN,
        manifest=f"s3://demo/shapes/{RUN}.jsonl",
        num_shards=1,  # an engine less to start
        # Slow, and with many commits.
        engine={"dtype": "float32", "max_batch_size": 1},
        limits={"max_failure_rate": 0.1, "commit_seconds": 0.1, "grace_seconds": 1},
    )
    shard = f"results/{RUN}/_work/shards/00000/"

    def commits() -> list[str]:
        return [key for key in world.keys(shard) if "/commit-" in key]

    wait_until(lambda: len(commits()) >= 3, 180, "three commits")
    processes = world.processes(RUN, "infer", 0)
    assert len(processes) >= 2, "the job and its engine"

    world.api.set_state(DAG, RUN, "infer", "failed", 0)
    wait_until(lambda: not any(map(is_alive, processes)), 60, "the end of its processes")
    assert world.processes(RUN, "infer", 0) == []
    done = commits()
    kept = {record["ordinal"] for record in committed(world, shard, done)}
    assert 0 < len(kept) < NUM_GOOD, "it was in its midst"

    world.api.clear(DAG, RUN, "infer", 0)
    assert world.wait_for_shards(RUN, seconds=240) == [2]
    assert commits()[: len(done)] == done
    world.check_answers(RUN, expected)


def committed(world: World, shard: str, commits: list[str]) -> list[dict]:
    """The records that these commits name."""
    records = []
    for key in commits:
        entry = json.loads(world.read(key))
        if entry["part"] is not None:
            part = f"{shard}part-{entry['epoch']:06d}-{entry['part']:08d}.jsonl"
            records += [json.loads(line) for line in world.read(part).splitlines()]
    return records
