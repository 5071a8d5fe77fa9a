"""Kills of a job with the real engine: its answers are those of a job that nobody killed."""

import sys

import pytest

from tests.job.chaos.chaos_job import ChaosJob

pytestmark = [pytest.mark.process, pytest.mark.slow]

REAL_ENGINE = f"{sys.executable} -m vlmflow_engine.server"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tests.tiny_llava import save_tiny_llava

    return save_tiny_llava(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.mark.parametrize(
    "point, commands",
    [
        ("part-written", ((),)),
        ("commit-created:2", (("--worker",),)),
        ("commit-created:2", (("--worker",), ("--worker",))),
        ("seal-due", ((),)),
    ],
)
def test_a_real_engines_answers_do_not_depend_on_kills(
    point, commands, checkpoint, job_server, tmp_path
):
    lines = [{"id": f"r{n}", "prompt": f"question {n} " * (1 + n % 3)} for n in range(12)]

    def make(name: str) -> ChaosJob:
        job = ChaosJob(
            job_server,
            tmp_path / name,
            str(tmp_path / name / "out"),
            lines=lines,
            model=str(checkpoint),
            environment={"VLMFLOW_ENGINE_COMMAND": REAL_ENGINE},
        )
        return job

    undisturbed, killed = make("undisturbed"), make("killed")
    undisturbed.run(())
    killed.kill_at(point)
    killed.run(*commands)
    killed.check(undisturbed.answers())
