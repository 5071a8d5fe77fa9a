"""What a task is given of Kubernetes and of KFP: as asked, and nothing that must not be shown."""

from typing import Any

import pytest
import yaml
from kfp import dsl

from vlmflow.job.errors import SpecError
from vlmflow.kubeflow.evaluate.component import evaluate
from vlmflow.kubeflow.gpu_task import GpuSettings, gpu_task
from vlmflow.kubeflow.step_task import AWS_KEYS, EnvSource, Retry, StepSettings, step_task
from vlmflow.kubeflow.submit import compile_pipeline


def compiled(tmp_path, gpu: GpuSettings | None, settings: StepSettings) -> tuple[dict, dict, dict]:
    """A pipeline of one task: the task, its container, and its Kubernetes part."""

    @dsl.pipeline(name="one")
    def one(secret: str = "s") -> None:
        task = evaluate(results="s3://o")
        if gpu is None:
            step_task(task, settings)
        else:
            gpu_task(task, gpu, settings)

    compile_pipeline(one, tmp_path / "one.yaml")
    pipeline, *platforms = yaml.safe_load_all((tmp_path / "one.yaml").read_text())
    kubernetes = platforms[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return (
        pipeline["root"]["dag"]["tasks"]["evaluate"],
        pipeline["deploymentSpec"]["executors"]["exec-evaluate"]["container"],
        kubernetes["exec-evaluate"],
    )


def test_a_step_has_what_its_settings_say(tmp_path):
    settings = StepSettings(
        image="registry/vlmflow:1",
        image_pull_policy="Always",
        image_pull_secrets=["registry-key"],
        secrets=[EnvSource("aws", {"id": "AWS_ACCESS_KEY_ID"}, is_optional=False)],
        config_maps=[EnvSource("settings", {"region": "AWS_DEFAULT_REGION"})],
        env={"HF_HUB_OFFLINE": "1"},
        retry=Retry(5, "60s", 3.0, "600s"),
        timeout_seconds=7200,
        is_cached=True,
    )
    task, container, kubernetes = compiled(tmp_path, None, settings)
    assert container["image"] == "registry/vlmflow:1"
    assert task["cachingOptions"] == {"enableCache": True}
    assert task["retryPolicy"] == {
        "maxRetryCount": 5,
        "backoffDuration": "60s",
        "backoffFactor": 3.0,
        "backoffMaxDuration": "600s",
    }
    env = {item["name"]: item["value"] for item in container["env"]}
    assert env == {"HF_HUB_OFFLINE": "1", "KFP_TASK_NAME": "evaluate"}
    assert kubernetes["imagePullPolicy"] == "Always"
    assert kubernetes["imagePullSecret"][0]["secretName"] == "registry-key"
    assert kubernetes["activeDeadlineSeconds"] == "7200"
    (secret,) = kubernetes["secretAsEnv"]
    assert secret["secretName"] == "aws" and not secret.get("optional")
    assert secret["keyToEnv"] == [{"secretKey": "id", "envVar": "AWS_ACCESS_KEY_ID"}]
    (config_map,) = kubernetes["configMapAsEnv"]
    assert config_map["configMapName"] == "settings" and config_map["optional"] is True
    assert kubernetes["fieldPathAsEnv"] == [
        {"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}
    ]
    assert "resources" not in container


def test_a_claim_for_models_is_mounted_where_the_image_keeps_them(tmp_path):
    _, _, kubernetes = compiled(tmp_path, GpuSettings(cache_claim="models"), StepSettings())
    (mount,) = kubernetes["pvcMount"]
    assert (mount["constant"], mount["mountPath"]) == ("models", "/var/cache/vlmflow")


def test_by_default_a_step_is_tried_four_times_and_never_cached(tmp_path):
    task, _, _ = compiled(tmp_path, None, StepSettings())
    assert task["retryPolicy"]["maxRetryCount"] == 3
    assert task["retryPolicy"]["backoffDuration"] == "60s"
    assert task["cachingOptions"] == {}
    task, _, _ = compiled(tmp_path, None, StepSettings(retry=None))
    assert "retryPolicy" not in task


@pytest.mark.parametrize(
    "env", [{"AWS_SECRET_ACCESS_KEY": "hunter2"}, {"MLFLOW_TRACKING_URI": "http://u:hunter2@m"}]
)
def test_a_credential_in_plain_text_is_refused(tmp_path, env):
    with pytest.raises(SpecError, match="would stand in the pipeline as plain text") as error:
        compiled(tmp_path, None, StepSettings(env=env))
    assert "hunter2" not in str(error.value)


def test_a_gpu_brings_toleration_selector_and_shared_memory(tmp_path):
    _, container, kubernetes = compiled(tmp_path, GpuSettings(), StepSettings())
    accelerator = container["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
    assert kubernetes["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert "nvidia.com/gpu.present" in str(kubernetes["nodeSelector"])
    assert kubernetes["emptyDirMounts"] == [
        {
            "volumeName": "vlmflow-shm",
            "mountPath": "/dev/shm",
            "medium": "Memory",
            "sizeLimit": "8Gi",
        }
    ]


def test_without_a_gpu_nothing_of_it_is_asked(tmp_path):
    gpu = GpuSettings(count=None, cpu="4", memory="8Gi", shm_size=None)
    _, container, kubernetes = compiled(tmp_path, gpu, StepSettings())
    assert "accelerator" not in container["resources"]
    assert container["resources"]["resourceCpuLimit"] == "4"
    assert {"tolerations", "nodeSelector", "emptyDirMounts"} & set(kubernetes) == set()


def test_parameters_of_the_device_reach_a_task_in_a_loop(tmp_path):
    @dsl.pipeline(name="loop")
    def loop(
        kind: str, count: int, cpu: str, memory: str, where: dict, what: list, secret: str
    ) -> None:
        gpu = GpuSettings(
            resource=kind,
            count=count,
            cpu=cpu,
            memory=memory,
            node_selector=where,
            tolerations=what,
        )
        with dsl.ParallelFor(["a", "b"]) as item:
            task = evaluate(results=item)
            gpu_task(task, gpu, StepSettings(secrets=[EnvSource(secret, AWS_KEYS)]))

    compile_pipeline(loop, tmp_path / "loop.yaml")
    pipeline, _ = yaml.safe_load_all((tmp_path / "loop.yaml").read_text())
    inside: dict[str, Any] = pipeline["components"]["comp-for-loop-2"]["inputDefinitions"]
    names = ("kind", "count", "cpu", "memory", "where", "what", "secret")
    assert {f"pipelinechannel--{name}" for name in names} <= set(inside["parameters"])
