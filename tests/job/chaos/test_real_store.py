"""A real S3 server, where there is one: what its create-if-absent is worth, and kills on it.

VLMFLOW_TEST_S3_ENDPOINT     http://host:port; buckets are made there and emptied afterwards
VLMFLOW_TEST_S3_ACCESS_KEY   and
VLMFLOW_TEST_S3_SECRET_KEY   for it
VLMFLOW_TEST_S3_ATOMIC       "no" for a store known to let several win, else "yes"
"""

import os
from collections.abc import Iterator
from uuid import uuid4

import boto3
import pytest

from tests.job.chaos.chaos_job import ChaosJob
from tests.job.chaos.scenarios import ORDERS
from vlmflow.job.probe import create_is_atomic
from vlmflow.job.store import StoreOpener

ENDPOINT = os.environ.get("VLMFLOW_TEST_S3_ENDPOINT")
IS_ATOMIC = os.environ.get("VLMFLOW_TEST_S3_ATOMIC", "yes") != "no"

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(
        ENDPOINT is None, reason="VLMFLOW_TEST_S3_ENDPOINT names no real S3 server to test with"
    ),
]


@pytest.fixture
def place(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on the real server."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ["VLMFLOW_TEST_S3_ACCESS_KEY"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["VLMFLOW_TEST_S3_SECRET_KEY"])
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has read others already
    client = boto3.client("s3", endpoint_url=ENDPOINT)
    bucket = f"vlmflow-test-{uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=item["Key"])
    client.delete_bucket(Bucket=bucket)
    client.close()


def credentials() -> dict[str, str | None]:
    return {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


def test_the_probe_finds_out_whether_creating_is_atomic(place):
    # One race can be won by one even where several may win; the probe runs three.
    store = StoreOpener(ENDPOINT).open(place)
    found = [create_is_atomic(store) for _ in range(5)]
    print(found)
    assert all(found) if IS_ATOMIC else not all(found)


@pytest.mark.skipif(not IS_ATOMIC, reason="of a store that is not atomic nothing is promised")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("point", ["claim-created", "commit-created:2", "sealed", "success-due"])
def test_a_job_killed_on_a_real_store_ends_with_one_result_a_record(
    place,
    point,
    order,
    job_server,
    expected,
    tmp_path,
):
    job = ChaosJob(
        job_server,
        tmp_path / "job",
        place,
        num_shards=2 if order == "shards" else 1,
        endpoint=ENDPOINT,
        environment=credentials(),
    )
    job.kill_at(point)
    job.run(*ORDERS[order])
    job.check(expected["short"])


@pytest.mark.skipif(IS_ATOMIC, reason="this store is atomic")
def test_a_job_on_a_store_that_is_not_atomic_says_so(place, job_server, tmp_path):
    job = ChaosJob(
        job_server, tmp_path / "job", place, endpoint=ENDPOINT, environment=credentials()
    )
    job.run(())
    assert "creating an object is not atomic on this store" in job.log(0)
