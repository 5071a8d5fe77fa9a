"""`gpu_task`: a step with a GPU, and all that must be said together for it."""

from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

from vlmflow.kubeflow.step_task import STEP_DEFAULTS, StepSettings, step_task

GPU_RESOURCE = "nvidia.com/gpu"  # what NVIDIA's device plugin counts
# Nodes with GPUs are tainted by the device's name, so that nothing else lands there.
GPU_TOLERATIONS = [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}]
GPU_NODE_SELECTOR = {"nvidia.com/gpu.present": "true"}  # a label of GPU feature discovery

CACHE_FOLDER = "/var/cache/vlmflow"  # of the image

_SHM_VOLUME = "vlmflow-shm"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """The device, and the node that has it. All but `shm_size` may be a pipeline's parameter.

    :param resource: such as "nvidia.com/gpu" or "nvidia.com/mig-1g.10gb".
    :param count: GPUs of one task; None for a step on the CPU.
    :param cpu: limit, such as "8".
    :param memory: limit, such as "32Gi"; what is in /dev/shm counts as memory.
    :param tolerations: a list of dicts with Kubernetes' own names.
    :param node_selector: a dict of labels.
    :param shm_size: of a memory-backed /dev/shm, for a container's own 64 MiB end an engine;
        None for none.
    :param cache_claim: a PersistentVolumeClaim that many pods may write to, for models and images:
        without it each pod fetches its own. A parameter too, but never an empty one.
    """

    resource: Any = GPU_RESOURCE
    count: Any = 1
    cpu: Any = None
    memory: Any = None
    tolerations: Any = None
    node_selector: Any = None
    shm_size: str | None = "8Gi"
    cache_claim: Any = None


def gpu_task(
    task: dsl.PipelineTask,
    gpu: GpuSettings = GpuSettings(),
    settings: StepSettings = STEP_DEFAULTS,
) -> dsl.PipelineTask:
    """Set a task up, and return it. Raises SpecError as `step_task`."""
    step_task(task, settings)
    resources = {
        task.set_accelerator_type: gpu.resource if gpu.count is not None else None,
        task.set_accelerator_limit: gpu.count,
        task.set_cpu_limit: gpu.cpu,
        task.set_memory_limit: gpu.memory,
    }
    for set_resource, value in resources.items():
        if value is None:
            continue
        set_resource(value)
        if isinstance(value, PipelineChannel):
            # kfp 2.17 does this for what kfp-kubernetes sets, and not for resources: in a loop or
            # a condition the parameter would be missing, and the driver fail.
            task.register_pipeline_channels([value])
    tolerations, selector = gpu.tolerations, gpu.node_selector
    if gpu.count is not None:
        tolerations = GPU_TOLERATIONS if tolerations is None else tolerations
        selector = GPU_NODE_SELECTOR if selector is None else selector
    if tolerations is not None:
        kubernetes.add_toleration_json(task, tolerations)
    if selector is not None:
        kubernetes.add_node_selector_json(task, selector)
    if gpu.shm_size is not None:
        kubernetes.empty_dir_mount(
            task, _SHM_VOLUME, "/dev/shm", medium="Memory", size_limit=gpu.shm_size
        )
    if gpu.cache_claim is not None:
        kubernetes.mount_pvc(task, gpu.cache_claim, CACHE_FOLDER)
    return task
