"""A job that is done, for steps that look at one."""

from pathlib import Path

from tests.kubeflow.steps import make_job, run_command


def finished_job(tmp_path: Path) -> str:
    """Run one by the command line, and return its folder."""
    job = make_job(tmp_path)
    words = ["--spec", job.pop("options")]
    for name, value in job.items():
        words += [f"--{name}", value]
    done = run_command(["vlmflow", "run", *words])
    assert done.returncode == 0, done.stderr
    return f"{job['output']}/shapes"
