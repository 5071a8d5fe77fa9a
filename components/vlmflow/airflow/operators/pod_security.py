"""What a job's pod may do: Kubernetes' restricted profile, and a root that cannot be written to.

Pure functions over the Kubernetes client's models. The same stands in deploy/base/job.yaml.
"""

from collections.abc import Mapping
from typing import Any

from kubernetes.client import models as k8s

USER = 10001  # of our image; any image can be run as it
# What our image writes is below these two. An image of another kind is told so by the variables.
CACHE_FOLDER = "/var/cache/vlmflow"  # models, images, kernels
CACHE_VARIABLES = {"HOME": CACHE_FOLDER, "XDG_CACHE_HOME": CACHE_FOLDER}
_WRITABLE = {"vlmflow-cache": CACHE_FOLDER, "vlmflow-tmp": "/tmp"}


def restrict(arguments: dict[str, Any]) -> None:
    """Fill in an operator's arguments, where neither they nor a pod template say otherwise."""
    if any(arguments.get(name) for name in ("pod_template_file", "pod_template_dict")):
        return
    if arguments.get("full_pod_spec") is not None:
        return
    # Jobs never ask the Kubernetes API. A cloud's identity comes as a token of its own.
    arguments.setdefault("automount_service_account_token", False)
    arguments.setdefault(
        "security_context",
        k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=USER,
            run_as_group=USER,
            fs_group=USER,
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
    )
    arguments.setdefault(
        "container_security_context",
        k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        ),
    )


def has_read_only_root(context: k8s.V1SecurityContext | Mapping[str, Any] | None) -> bool:
    """Whether a container with it can write to its volumes only."""
    if isinstance(context, Mapping):
        return bool(context.get("readOnlyRootFilesystem"))
    return context is not None and bool(context.read_only_root_filesystem)


def writable_volumes() -> list[tuple[k8s.V1Volume, k8s.V1VolumeMount]]:
    """Where a job writes, gone with its pod."""
    return [
        (
            k8s.V1Volume(name=name, empty_dir=k8s.V1EmptyDirVolumeSource()),
            k8s.V1VolumeMount(name=name, mount_path=path),
        )
        for name, path in _WRITABLE.items()
    ]
