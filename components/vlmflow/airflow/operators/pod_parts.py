"""What a pod needs to run a job: the spec as a file, a GPU with all that goes with it, a grace.

Pure functions over the Kubernetes client's models; nothing here imports Airflow. What is added
replaces what has its name, so that dressing a pod twice is the same as once.

The spec travels in an annotation of the pod and is mounted as a file by the downward API: no
ConfigMap that somebody must be allowed to make, that outlives a killed task or is gone when a pod
is started again; and no argument, of which Linux takes 128 KiB.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from kubernetes.client import models as k8s

from vlmflow.job.errors import EXIT_BAD_INPUT, EXIT_FAILURES, SpecError
from vlmflow.job.shown import plain_credentials, shown_json
from vlmflow.job.spec import JobSpec

SPEC_ANNOTATION = "vlmflow/spec"
SPEC_VOLUME = "vlmflow-spec"
SPEC_FOLDER = "/etc/vlmflow"
SPEC_PATH = f"{SPEC_FOLDER}/spec.json"
SHM_VOLUME = "vlmflow-shm"

# Kubernetes refuses annotations of more than 256 KiB in all; the rest is for other people's.
MAX_SPEC_BYTES = 240 << 10
# After the job's own grace: the last commit, the report of the attempt, the end of the process.
EXIT_SECONDS = 30

# What NVIDIA's device plugin counts, and the label that its feature discovery gives to nodes.
GPU_RESOURCE = "nvidia.com/gpu"
GPU_NODE_SELECTOR = {"nvidia.com/gpu.present": "true"}


def spec_for_pod(spec: JobSpec) -> str:
    """The bytes that `vlmflow run --spec` gets. Raises SpecError if a pod cannot carry them."""
    return shown_json(
        spec,
        "a pod",
        "as a Kubernetes Secret",
        holder="a pod's annotation",
        max_bytes=MAX_SPEC_BYTES,
    )


def spec_volume() -> tuple[k8s.V1Volume, k8s.V1VolumeMount]:
    """The pod's own annotation, as a file."""
    source = k8s.V1DownwardAPIVolumeSource(
        items=[
            k8s.V1DownwardAPIVolumeFile(
                path="spec.json",
                field_ref=k8s.V1ObjectFieldSelector(
                    field_path=f"metadata.annotations['{SPEC_ANNOTATION}']"
                ),
            )
        ]
    )
    return (
        k8s.V1Volume(name=SPEC_VOLUME, downward_api=source),
        k8s.V1VolumeMount(name=SPEC_VOLUME, mount_path=SPEC_FOLDER, read_only=True),
    )


def shm_volume(size: str) -> tuple[k8s.V1Volume, k8s.V1VolumeMount]:
    """Shared memory of that size at most; a container's default of 64 MiB ends engines.

    What is in it counts as memory of the container.
    """
    source = k8s.V1EmptyDirVolumeSource(medium="Memory", size_limit=size)
    return (
        k8s.V1Volume(name=SHM_VOLUME, empty_dir=source),
        k8s.V1VolumeMount(name=SHM_VOLUME, mount_path="/dev/shm"),
    )


def gpu_resources(
    gpus: int, resource: str, given: k8s.V1ResourceRequirements | Mapping[str, Any] | None
) -> k8s.V1ResourceRequirements:
    """`given` with so many GPUs. Raises SpecError if it says another number itself."""
    if isinstance(given, Mapping) or given is None:
        resources = k8s.V1ResourceRequirements(**(given or {}))
    else:
        resources = given
    asked = (resources.limits or {}).get(resource)
    if asked is not None and str(asked) != str(gpus):
        raise SpecError(
            f"container_resources asks for {asked} of {resource} and gpus is {gpus}; give one of "
            "them, or the same number"
        )
    return k8s.V1ResourceRequirements(
        # Quantities are strings in the API's schema, though servers take numbers.
        limits=_as_quantities(resources.limits) | {resource: str(gpus)},
        requests=_as_quantities(resources.requests) or None,
        claims=resources.claims,
    )


def with_gpu_toleration(
    tolerations: Iterable[k8s.V1Toleration], resource: str
) -> list[k8s.V1Toleration]:
    """Nodes with GPUs are tainted by the device's name, so that nothing else lands there."""
    return [
        *(toleration for toleration in tolerations if toleration.key != resource),
        k8s.V1Toleration(key=resource, operator="Exists", effect="NoSchedule"),
    ]


def with_volume(
    volumes: Iterable[Any], mounts: Iterable[Any], added: tuple[k8s.V1Volume, k8s.V1VolumeMount]
) -> tuple[list[Any], list[Any]]:
    """Volumes and mounts with one more; what a user has mounted at that path himself stays."""
    volumes = [volume for volume in volumes if _named(volume) != added[0].name]
    mounts = [mount for mount in mounts if _named(mount) != added[0].name]
    if any(_mount_path(mount) == added[1].mount_path for mount in mounts):
        return volumes, mounts
    return [*volumes, added[0]], [*mounts, added[1]]


def with_variables(
    given: Iterable[k8s.V1EnvVar] | Mapping[str, str], added: Mapping[str, str]
) -> list[k8s.V1EnvVar]:
    """The environment with more variables; what a user has set himself stays."""
    if isinstance(given, Mapping):
        given = [k8s.V1EnvVar(name=name, value=value) for name, value in given.items()]
    given = list(given)
    names = {variable.name for variable in given}
    return given + [
        k8s.V1EnvVar(name=name, value=value) for name, value in added.items() if name not in names
    ]


def termination_grace(asked: int | None, job_grace_seconds: float) -> int:
    """Seconds between SIGTERM and SIGKILL. Raises SpecError if the job would be cut off."""
    needed = math.ceil(job_grace_seconds)
    if asked is None:
        return needed + EXIT_SECONDS
    if asked < needed:
        raise SpecError(
            f"termination_grace_period is {asked} s and limits.grace_seconds {job_grace_seconds:g}:"
            " the pod would be killed while it commits; raise the first or lower the second"
        )
    return asked


def failure_policy(container: str) -> k8s.V1PodFailurePolicy:
    """When a Job replaces a pod: not for what every pod would say, always for what none can help.

    Such a policy wants the pods' restartPolicy Never, which the provider sets.
    """
    final = k8s.V1PodFailurePolicyOnExitCodesRequirement(
        container_name=container, operator="In", values=[EXIT_BAD_INPUT, EXIT_FAILURES]
    )
    disruption = k8s.V1PodFailurePolicyOnPodConditionsPattern(
        type="DisruptionTarget", status="True"
    )
    return k8s.V1PodFailurePolicy(
        rules=[
            k8s.V1PodFailurePolicyRule(action="FailJob", on_exit_codes=final),
            k8s.V1PodFailurePolicyRule(action="Ignore", on_pod_conditions=[disruption]),
        ]
    )


def refuse_plain_credentials(pod_spec: k8s.V1PodSpec) -> None:
    """Raises SpecError if a container's environment holds a credential that is no reference.

    Whoever may read pods reads their environment, and failed pods are printed into logs.
    """
    for container in [*pod_spec.containers, *(pod_spec.init_containers or [])]:
        refuse_plain_variables((item.name, item.value) for item in container.env or [])


def refuse_plain_variables(variables: Iterable[tuple[str, Any]]) -> None:
    """The same of names and values, which may be another task's and not known yet.

    The value is not told.
    """
    for name in plain_credentials(variables):
        raise SpecError(
            f"the variable {name!r} would stand in the pod as plain text; keep its value in a "
            f'Kubernetes Secret and give secrets=[Secret("env", "{name}", "<secret>", "<key>")]'
        )


def _as_quantities(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (values or {}).items()}


def _named(item: Any) -> str:
    """Users give models, or dicts of the same."""
    return str(item["name"] if isinstance(item, Mapping) else item.name)


def _mount_path(mount: Any) -> str:
    return str(mount["mount_path"] if isinstance(mount, Mapping) else mount.mount_path)
