"""Connections: what they say, and that their secrets go nowhere else."""

import json
import os

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from vlmflow.airflow.hooks import vlmflow as hook_module
from vlmflow.airflow.hooks.vlmflow import Settings, VLMFlowHook

SECRET = "not-for-anybodys-eyes"


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two connections, as an environment gives them."""
    vlmflow = {
        "conn_type": "vlmflow",
        "login": "ada",
        "password": f"mlflow-{SECRET}",
        "extra": {
            "endpoint_url": "http://s3.example.org:9000",
            "mlflow_uri": "http://mlflow.example.org",
            "image": "registry.example.org/vlmflow:1",
            "python": "/opt/vlmflow/bin/python",
        },
    }
    aws = {
        "conn_type": "aws",
        "login": "THE-ACCESS-KEY",
        "password": f"aws-{SECRET}",
        "extra": {"aws_session_token": f"token-{SECRET}", "region_name": "eu-central-1"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_VLM", json.dumps(vlmflow))
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps(aws))


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is handed to Airflow's masker by us."""
    masked: list[str] = []
    monkeypatch.setattr(hook_module, "mask_secret", masked.append)
    return masked


def test_a_connection_says_what_the_form_asks(connections):
    settings = VLMFlowHook("vlm").settings
    assert settings == Settings(
        endpoint_url="http://s3.example.org:9000",
        mlflow_uri="http://mlflow.example.org",
        image="registry.example.org/vlmflow:1",
        python="/opt/vlmflow/bin/python",
        mlflow_user="ada",
        mlflow_password=f"mlflow-{SECRET}",
    )
    assert SECRET not in repr(settings)


def test_without_a_connection_nothing_is_said():
    hook = VLMFlowHook(None)
    assert hook.settings == Settings()
    assert hook.credentials is None
    assert hook.environment({"PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize("hook", [VLMFlowHook("none_such"), VLMFlowHook(None, "none_such")])
def test_a_connection_that_is_not_there_is_no_empty_one(hook):
    with pytest.raises(AirflowNotFoundException, match="none_such.*; make one of type"):
        hook.environment()


def test_one_kind_of_connection_is_not_taken_for_the_other(connections):
    for hook, message in (
        (VLMFlowHook("store"), "vlmflow_conn_id 'store' is a connection of type 'aws'"),
        (VLMFlowHook(None, "vlm"), "aws_conn_id 'vlm' is a connection of type 'vlmflow'"),
    ):
        with pytest.raises(AirflowFailException, match=message):
            hook.environment()


def test_the_password_of_mlflows_uri_is_masked(masked, monkeypatch):
    extra = {"mlflow_uri": f"https://ada:{SECRET}@mlflow.example.org"}
    connection = {"conn_type": "vlmflow", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_VLM", json.dumps(connection))
    assert VLMFlowHook("vlm").settings.mlflow_uri == extra["mlflow_uri"]
    assert SECRET in masked


def test_secrets_go_into_the_environment_and_are_masked(connections, masked):
    hook = VLMFlowHook("vlm", "store")
    environment = hook.environment({"AWS_PROFILE": "the-workers", "PATH": "/bin"})
    assert environment == {
        "PATH": "/bin",
        "AWS_ACCESS_KEY_ID": "THE-ACCESS-KEY",
        "AWS_SECRET_ACCESS_KEY": f"aws-{SECRET}",
        "AWS_SESSION_TOKEN": f"token-{SECRET}",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_REGION": "eu-central-1",
        "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": f"mlflow-{SECRET}",
    }
    assert {f"{kind}-{SECRET}" for kind in ("aws", "token", "mlflow")} <= set(masked)
    assert SECRET not in repr(hook.credentials)
    assert not any(SECRET in value for value in os.environ.values() if "conn_type" not in value)


def test_a_token_of_the_workers_does_not_go_with_keys_of_the_connections(connections, monkeypatch):
    content = json.loads(os.environ["AIRFLOW_CONN_STORE"])
    del content["extra"]["aws_session_token"]
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps(content))
    environment = VLMFlowHook(None, "store").environment({"AWS_SESSION_TOKEN": "another's"})
    assert "AWS_SESSION_TOKEN" not in environment


def test_what_airflow_keeps_for_itself_stays_with_the_worker():
    own = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": SECRET,
        "AIRFLOW_CONN_OTHER": SECRET,
        "AIRFLOW_VAR_OTHER": SECRET,
    }
    kept = {"AIRFLOW_HOME": "/airflow", "PYTHONPATH": "/somewhere"}
    assert VLMFlowHook(None).environment(own | kept) == kept


def test_a_store_is_opened_with_the_connections_credentials(connections, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-workers")
    opener = VLMFlowHook(None, "store").opener("http://127.0.0.1:1")
    credentials = opener._s3_client()._request_signer._credentials
    assert credentials.access_key == "THE-ACCESS-KEY"
    assert credentials.token == f"token-{SECRET}"
