"""The parts of a pod, without Airflow and without a cluster."""

import json

import pytest
from kubernetes.client import models as k8s

from vlmflow.airflow.operators.pod_parts import (
    EXIT_SECONDS,
    MAX_SPEC_BYTES,
    gpu_resources,
    refuse_plain_credentials,
    refuse_plain_variables,
    shm_volume,
    spec_for_pod,
    termination_grace,
    with_gpu_toleration,
    with_variables,
    with_volume,
)
from vlmflow.job.errors import SpecError
from vlmflow.job.spec import JobSpec

GPU = "nvidia.com/gpu"


def make_spec(**values):
    return JobSpec.parse(
        {"manifest": "s3://b/m.jsonl", "model": "m", "output": "s3://b/o", **values}
    )


def test_a_pod_gets_the_bytes_of_the_command_line():
    spec = make_spec(prompt="what {{ is }} 'this'?\nü", num_shards=3)
    assert spec_for_pod(spec) == spec.canonical_json()
    assert JobSpec.parse(json.loads(spec_for_pod(spec))) == spec


def test_a_spec_that_no_annotation_holds_is_refused_with_its_size():
    assert spec_for_pod(make_spec(prompt="p" * (MAX_SPEC_BYTES - 5000)))
    with pytest.raises(SpecError, match=rf"the spec has \d+ bytes, .* {MAX_SPEC_BYTES};"):
        spec_for_pod(make_spec(prompt="p" * MAX_SPEC_BYTES))


def test_a_tracking_uri_with_a_password_is_refused_and_not_quoted():
    spec = make_spec(tracking={"uri": "https://user:hunter2@mlflow.example.com"})
    with pytest.raises(SpecError, match="https://mlflow.example.com.* Kubernetes Secret") as caught:
        spec_for_pod(spec)
    assert "hunter2" not in str(caught.value)


def test_gpus_are_added_to_what_else_is_asked_for():
    resources = gpu_resources(2, GPU, {"limits": {"memory": "64Gi", "cpu": 8}})
    assert resources.limits == {"memory": "64Gi", "cpu": "8", GPU: "2"}
    same = gpu_resources(2, GPU, resources)
    assert same.limits == resources.limits


def test_two_numbers_of_gpus_are_a_contradiction():
    with pytest.raises(SpecError, match="asks for 2 of nvidia.com/gpu and gpus is 1"):
        gpu_resources(1, GPU, {"limits": {GPU: 2}})


def test_one_toleration_of_a_device_is_enough():
    other = k8s.V1Toleration(key="team", operator="Equal", value="vision")
    once = with_gpu_toleration([other], GPU)
    assert with_gpu_toleration(once, GPU) == once
    assert [toleration.key for toleration in once] == ["team", GPU]


def test_a_volume_added_twice_is_there_once():
    added = shm_volume("2Gi")
    volumes, mounts = with_volume(*with_volume([{"name": "x"}], [], added), added)
    assert volumes == [{"name": "x"}, added[0]] and mounts == [added[1]]


def test_what_is_mounted_at_that_path_already_stays():
    mine = {"name": "mine", "mount_path": "/dev/shm"}
    volumes, mounts = with_volume([{"name": "mine"}], [mine], shm_volume("2Gi"))
    assert (volumes, mounts) == ([{"name": "mine"}], [mine])


def test_a_variable_that_is_set_already_stays():
    once = with_variables({"A": "mine"}, {"A": "ours", "B": "b"})
    assert [(variable.name, variable.value) for variable in once] == [("A", "mine"), ("B", "b")]
    assert with_variables(once, {"A": "ours", "B": "b"}) == once


def test_a_pod_is_left_alone_longer_than_the_job_needs():
    assert termination_grace(None, 25.5) == 26 + EXIT_SECONDS
    assert termination_grace(90, 60) == 90
    with pytest.raises(SpecError, match="termination_grace_period is 30 s and .* 60:"):
        termination_grace(30, 60)


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN",
     "MLFLOW_TRACKING_PASSWORD", "openai_api_key", "DB_PASSWD"],
)  # fmt: skip
def test_a_credential_as_plain_text_is_refused_and_not_quoted(name):
    with pytest.raises(SpecError, match=f"{name}.* Kubernetes Secret") as caught:
        refuse_plain_variables([("HOME", "/root"), (name, "hunter2")])
    assert "hunter2" not in str(caught.value)


def test_a_password_within_a_url_is_refused():
    with pytest.raises(SpecError, match="MLFLOW_TRACKING_URI"):
        refuse_plain_variables([("MLFLOW_TRACKING_URI", "https://u:hunter2@mlflow")])


def test_what_only_sounds_like_a_secret_is_allowed():
    refuse_plain_variables(
        [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
            ("TOKENIZERS_PARALLELISM", "false"),
            ("MLFLOW_TRACKING_URI", "https://mlflow:5000/path"),
            ("HF_TOKEN", None),
            ("HF_TOKEN", ""),
        ]
    )


def test_references_are_allowed_and_init_containers_are_looked_at():
    reference = k8s.V1EnvVarSource(secret_key_ref=k8s.V1SecretKeySelector(name="s", key="k"))
    held = k8s.V1Container(name="a", env=[k8s.V1EnvVar(name="HF_TOKEN", value_from=reference)])
    refuse_plain_credentials(k8s.V1PodSpec(containers=[held]))
    plain = k8s.V1Container(name="b", env=[k8s.V1EnvVar(name="HF_TOKEN", value="x")])
    with pytest.raises(SpecError, match="HF_TOKEN"):
        refuse_plain_credentials(k8s.V1PodSpec(containers=[held], init_containers=[plain]))
