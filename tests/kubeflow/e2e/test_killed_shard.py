"""Containers of shards that are killed in their midst, and what their retries make of it."""

import threading
from dataclasses import replace

import docker
import pytest

from tests.kubeflow.e2e.world import World, steps
from tools.kfp_local.containers import Containers
from tools.kubeflow_files import load_pipeline
from vlmflow.job.errors import EXIT_RESUMABLE
from vlmflow.job.layout import shard_prefix
from vlmflow.kubeflow.step_task import Retry

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore:Task .* have no effect in the current local runner"),
    pytest.mark.filterwarnings("ignore:It looks like you're using the remote file"),
]

JOB = "killed-shards"
SIGNALS = {"0/2": "TERM", "1/2": "KILL"}
CODES = {"0/2": EXIT_RESUMABLE, "1/2": 128 + 9}


class Killer(threading.Thread):
    """Kills the first container of a shard as soon as it has committed something."""

    def __init__(self, world: World, containers: Containers, shard: str) -> None:
        super().__init__(name=f"killer of {shard}", daemon=True)
        self.world, self.containers, self.shard = world, containers, shard
        self.engine = docker.from_env()  # quicker than the command, and a shard is soon done
        self.committed = 0  # how many commits there were then
        self.is_over = threading.Event()

    def run(self) -> None:
        prefix = f"results/{JOB}/{shard_prefix(0, int(self.shard[0]))}"
        while not self.is_over.wait(0.1):
            self.committed = sum("/commit-" in key for key in self.world.keys(prefix))
            if self.committed == 0:
                continue
            word = f"--shard={self.shard}"
            (container,) = [
                each for each, command in dict(self.containers.running).items() if word in command
            ]
            self.engine.containers.get(container).kill(SIGNALS[self.shard])
            break
        self.engine.close()


def test_shards_killed_by_sigterm_and_sigkill_go_on_in_their_retries(world: World):
    """A cluster waits a minute and a half between two attempts; here the second one comes at once,
    and waits itself until the claim of the killed one is known to be dead.
    """
    slow = {"engine": {"max_batch_size": 1}, "limits": {"commit_seconds": 0.1}}
    parameters = world.job(JOB, num_shards=2, num_good=256, **slow)
    module = load_pipeline("vlm_batch_inference_pipeline")
    retried = replace(module.PIPELINE_DEFAULTS.steps, retry=Retry(2, "1s", 1.0, "1s"))
    settings = replace(module.PIPELINE_DEFAULTS, steps=retried)
    with world.kubeflow() as containers:
        killers = [Killer(world, containers, shard) for shard in SIGNALS]
        for killer in killers:
            killer.start()
        try:
            module.make_pipeline(settings)(**parameters)
        finally:
            for killer in killers:
                killer.is_over.set()
                killer.join(60)
    for shard, code in CODES.items():
        ended = [each for each in containers.ended if f"--shard={shard}" in each.command]
        assert [each.exit_code for each in ended] == [code, 0], ended
    assert [step for step in steps(containers) if step[0] != "vlmflow run"] == [
        ("vlmflow plan", 0),
        ("vlmflow merge", 0),
        ("vlmflow evaluate", 0),
        ("vlmflow compare", 0),
    ]
    world.check_job(JOB)
    assert len(world.report(JOB)["attempts"]) == 4
    for killer in killers:
        assert killer.committed > 0, "it was in its midst"
