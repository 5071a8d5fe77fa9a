"""One MLflow server for all tests here: starting it takes seconds."""

import pytest

from tests.mlflow_proxy import Proxy, proxy_to
from tools.loopback_mlflow import loopback_mlflow


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The URL of a real server on SQLite."""
    with loopback_mlflow(tmp_path_factory.mktemp("mlflow") / "server") as url:
        yield url


@pytest.fixture
def proxy(server) -> Proxy:
    """A way to it on which things go wrong."""
    with proxy_to(server) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No run of somebody else's, and no patience with a server that is told to fail."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
