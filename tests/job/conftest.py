"""A real S3 server on loopback, and each kind of store below a fresh root."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from tests.job.faulty_s3 import FaultyS3
from tests.job.jobs import FAKE_ENGINE
from tools.loopback_s3 import loopback_s3
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.store import Store, StoreOpener

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A machine that trains a model beside the tests is slow now and then; that is no fault of theirs.
settings.register_profile("job", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("job")

SECRET_KEY = "the-secret-key-that-nobody-may-see"


@pytest.fixture(scope="session")
def aws_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Credentials of nobody, for this process and its children, and a cache of no one else."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
            environment.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            environment.setenv(name, "/nonexistent")
        environment.setenv("AWS_ACCESS_KEY_ID", "nobody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def s3_endpoint(aws_environment: None) -> Iterator[str]:
    """The URL of an S3 server that all tests share."""
    with loopback_s3() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def s3_client(s3_endpoint: str) -> "Iterator[S3Client]":
    """For what our own stores do not do."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3_endpoint)
    yield client
    client.close()


@pytest.fixture(scope="session")
def opener(s3_endpoint: str) -> StoreOpener:
    """Opens folders, and buckets of the server."""
    return StoreOpener(s3_endpoint)


@pytest.fixture
def bucket(s3_client: "S3Client") -> str:
    """The name of an empty bucket."""
    name = f"bucket-{uuid4().hex}"
    s3_client.create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a fresh place to put things, of either kind."""
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"s3://{request.getfixturevalue('bucket')}/some/where"


@pytest.fixture
def store(root: str, request: pytest.FixtureRequest) -> Store:
    """A fresh store of either kind."""
    is_s3 = root.startswith("s3://")  # without it no server is started
    return (request.getfixturevalue("opener") if is_s3 else StoreOpener()).open(root)


@pytest.fixture
def faulty_s3(s3_endpoint: str) -> Iterator[FaultyS3]:
    """A way to the S3 server on which things go wrong when a test wants them to."""
    with FaultyS3(s3_endpoint) as server:
        yield server


@pytest.fixture
def faulty_store(faulty_s3: FaultyS3, bucket: str) -> Store:
    """A store on that way."""
    return StoreOpener(faulty_s3.url).open(f"s3://{bucket}/some/where")


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let every job here talk to the fake engine; the file says which records it was asked."""
    log = tmp_path / "asked"
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("FAKE_ENGINE_LOG", str(log))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let botocore try again at once; it would sleep for up to 20 s."""

    class Time:
        sleep = staticmethod(lambda seconds: None)

    monkeypatch.setattr("botocore.endpoint.time", Time)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """What `time.monotonic` says while a test lasts."""
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", clock)
        yield clock
