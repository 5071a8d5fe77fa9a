"""A cluster for each test, found by the provider through its own connection."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.airflow.kubernetes.kit import Kit, started_kit


@pytest.fixture
def kit(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kit]:
    """A cluster; as an indirect parameter: the seconds that an answer takes."""
    with started_kit(tmp_path, seconds_per_answer=getattr(request, "param", 0.0)) as kit:
        config = kit.server.write_kubeconfig(tmp_path / "kubeconfig")
        connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(config)}}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
        yield kit
