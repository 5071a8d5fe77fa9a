"""`step_task`: what every step of ours needs of Kubeflow, set in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kfp import dsl, kubernetes

from vlmflow.job.errors import SpecError
from vlmflow.job.shown import plain_credentials

# Keys of a Secret, by the variables they become. A key that the Secret has not is no error.
AWS_KEYS = {
    "AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN": "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION": "AWS_DEFAULT_REGION",
}
MLFLOW_KEYS = {
    "MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME": "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD": "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN": "MLFLOW_TRACKING_TOKEN",
}

# By which the job tells MLflow who started it; KFP itself sets those of the pod.
_RUN_ID_LABEL = "metadata.labels['pipeline/runid']"


@dataclass(frozen=True, slots=True)
class EnvSource:
    """A Secret or a ConfigMap whose keys become variables.

    `name` may be a pipeline's parameter, `keys` may not: {key: variable}. What is optional may be
    missing as a whole, or lack a key.
    """

    name: Any
    keys: Mapping[str, str]
    is_optional: bool = True


@dataclass(frozen=True, slots=True)
class Retry:
    """KFP retries whatever the exit code. The times fit a store that is away for a while."""

    count: int = 3
    backoff: str = "60s"
    factor: float = 2.0
    longest: str = "900s"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What a step runs with. None of it may be a pipeline's parameter, but for names in sources.

    :param image: another than the components' own.
    :param image_pull_policy: Always, Never or IfNotPresent.
    :param image_pull_secrets: names of Secrets for the image's registry; parameters, if you like.
    :param secrets: as variables: AWS_KEYS and MLFLOW_KEYS are such mappings.
    :param config_maps: as variables.
    :param env: variables in plain text; a credential among them is refused.
    :param retry: None for no second attempt.
    :param timeout_seconds: after which the step's pod is ended; a retry begins anew. None: never.
    :param is_cached: take the outputs of an earlier step with the same inputs.
    """

    image: str | None = None
    image_pull_policy: str | None = None
    image_pull_secrets: Sequence[Any] = ()
    secrets: Sequence[EnvSource] = ()
    config_maps: Sequence[EnvSource] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    retry: Retry | None = Retry()
    timeout_seconds: int | None = None
    is_cached: bool = False


STEP_DEFAULTS = StepSettings()


def step_task(task: dsl.PipelineTask, settings: StepSettings = STEP_DEFAULTS) -> dsl.PipelineTask:
    """Set a task up, and return it. Raises SpecError for a credential in plain text."""
    for name in plain_credentials(settings.env.items()):
        raise SpecError(
            f"the variable {name!r} would stand in the pipeline as plain text; keep its value in a "
            f'Kubernetes Secret and give secrets=[EnvSource("<secret>", {{"<key>": "{name}"}})]'
        )
    if settings.image is not None:
        task.set_container_image(settings.image)
    task.set_caching_options(settings.is_cached)
    if settings.retry is not None:
        retry = settings.retry
        task.set_retry(retry.count, retry.backoff, retry.factor, retry.longest)
    for name, value in settings.env.items():
        task.set_env_variable(name, str(value))
    task.set_env_variable("KFP_TASK_NAME", task.name)
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", _RUN_ID_LABEL)
    for source in settings.secrets:
        kubernetes.use_secret_as_env(task, source.name, dict(source.keys), source.is_optional)
    for source in settings.config_maps:
        kubernetes.use_config_map_as_env(task, source.name, dict(source.keys), source.is_optional)
    if settings.timeout_seconds is not None:
        kubernetes.set_timeout(task, settings.timeout_seconds)
    if settings.image_pull_policy is not None:
        kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.image_pull_secrets))
    return task
