"""What the chaos tests share: a server that starts jobs, and what a job nobody kills makes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.job.chaos.chaos_job import LONG, SHORT, ChaosJob, JobServer


@pytest.fixture(scope="session")
def job_server(aws_environment: None) -> Iterator[JobServer]:
    with JobServer() as server:
        yield server


@pytest.fixture(scope="session")
def chaos_bucket(s3_client: Any) -> str:
    """One bucket for all jobs; each has a prefix of its own."""
    name = f"chaos-{uuid4().hex}"
    s3_client.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def expected(job_server: JobServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers of a job that nobody killed, by kind."""

    def undisturbed(kind: str, lines: list[Any]) -> dict[str, Any]:
        folder: Path = tmp_path_factory.mktemp(kind)
        job = ChaosJob(job_server, folder, str(folder / "out"), lines=lines)
        job.run(())
        job.check(job.answers())
        return job.answers()

    short = undisturbed("short", SHORT)
    return {"short": short, "rerun": short, "long": undisturbed("long", LONG)}
