"""`PodJobMixin`: what the two Kubernetes operators share: a pod dressed, and its end judged."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from vlmflow.airflow.operators.job_operator import JobOperatorMixin
from vlmflow.airflow.operators.pod_end import PodEnd, is_committed_since
from vlmflow.airflow.operators.pod_parts import (
    GPU_NODE_SELECTOR,
    GPU_RESOURCE,
    SPEC_ANNOTATION,
    SPEC_PATH,
    gpu_resources,
    refuse_plain_credentials,
    refuse_plain_variables,
    shm_volume,
    spec_for_pod,
    spec_volume,
    termination_grace,
    with_gpu_toleration,
    with_variables,
    with_volume,
)
from vlmflow.airflow.operators.pod_security import (
    CACHE_VARIABLES,
    has_read_only_root,
    restrict,
    writable_volumes,
)
from vlmflow.airflow.process import Ended
from vlmflow.job.errors import SpecError
from vlmflow_engine.errors import VlmflowError

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

    from vlmflow.job.spec import JobSpec
    from vlmflow.job.spec_arguments import JobPlace


class PodJobMixin(JobOperatorMixin):
    """Dresses the pod that KubernetesPodOperator builds, and judges a pod's end by the report.

    :param gpus: GPUs of the container. 1 or more sets the limit, the toleration, the node selector
        and a memory-backed /dev/shm together.
    :param gpu_resource: what the device plugin calls them, such as "nvidia.com/mig-1g.10gb".
    :param node_selector: with GPUs and without one of yours: nvidia.com/gpu.present=true.
    :param shm_size: limit of /dev/shm; what is in it counts as memory of the container.
    :param pod_name: name of the pod or the Job; the task's if it is not given.
    :param security_context: of the pod; user 10001 and the restricted profile if it is not given.
    :param container_security_context: no privileges and a read-only root if it is not given; with
        such a root the pod has volumes for caches (/var/cache/vlmflow) and for /tmp. A pod template
        decides both itself.
    :param image: the connection's (`vlmflow_conn_id`) if it is not given.
    :param termination_grace_period: limits.grace_seconds and 30 s more if it is not given.
    :param do_xcom_push: push the report's summary. There is no sidecar for it that could be lost.

    Credentials reach a pod as references to Kubernetes Secrets (`secrets=`) or by its service
    account; one in plain text is refused. `aws_conn_id` is what the worker reads the report with.
    """

    # The provider's, filled in by `dress`.
    image: str | None
    cmds: list[str]
    annotations: dict[str, str]
    volumes: list[Any]
    volume_mounts: list[Any]
    termination_grace_period: int | None
    env_vars: Any
    container_resources: Any
    container_security_context: Any
    tolerations: list[Any]

    def __init__(
        self,
        *,
        gpus: int | str = 0,
        gpu_resource: str = GPU_RESOURCE,
        node_selector: dict[str, str] | None = None,
        shm_size: str = "8Gi",
        pod_name: str | None = None,
        do_xcom_push: bool = True,
        log_pod_spec_on_failure: bool = False,
        **kwargs: Any,
    ) -> None:
        for name in ("arguments", "is_delete_operator_pod"):
            if kwargs.get(name) is not None:
                raise SpecError(f"{name} is not an argument of this operator: the job decides it")
        if isinstance(kwargs.get("env_vars"), Mapping):  # as early as it can be known
            refuse_plain_variables(kwargs["env_vars"].items())
        # What the job said last is then in the pod's status, for those who may not read logs.
        kwargs.setdefault("termination_message_policy", "FallbackToLogsOnError")
        restrict(kwargs)
        super().__init__(
            node_selector=node_selector,
            do_xcom_push=False,
            log_pod_spec_on_failure=log_pod_spec_on_failure,
            **kwargs,
        )
        self.name = pod_name  # the provider's name for it; the job's own is `job_name`
        self.gpus = gpus
        self.gpu_resource = gpu_resource
        self.has_node_selector = node_selector is not None
        self.shm_size = shm_size
        self.pushes_summary = do_xcom_push

    def dress(self, context: "Context | None") -> None:
        """Put the job into the provider's fields, before it builds the pod of them.

        Raises AirflowFailException with a sentence. Twice is the same as once.
        """
        spec = self.job_spec()
        try:
            self._dress(spec, context)
        except VlmflowError as error:
            raise AirflowFailException(str(error)) from None

    def check_dressed(self, pod_spec: "k8s.V1PodSpec") -> None:
        """Look at the pod that came of it, templates and all. Raises AirflowFailException."""
        try:
            refuse_plain_credentials(pod_spec)
        except VlmflowError as error:
            raise AirflowFailException(str(error)) from None

    def job_arguments(self, spec: "JobSpec") -> list[str]:
        """The arguments of the container."""
        return self.run_arguments(spec, SPEC_PATH)

    @staticmethod
    def count(name: str, given: int | str, *, at_least: int) -> int:
        """A whole number; a template makes text of it. Raises SpecError."""
        if not str(given).isdecimal() or int(given) < at_least:
            raise SpecError(f"{name} must be a whole number from {at_least}, got {given!r}")
        return int(given)

    def judge(self, context: "Context", end: PodEnd, cause: Exception | None) -> dict[str, Any]:
        """Decide by what is committed, and return the summary, which is pushed then.

        Raises AirflowFailException for what a retry cannot mend, else AirflowException.
        """
        place, code = self.job_place(), end.code
        if code is None:
            self._check_committed(context, place, end, cause)
            self.log.warning("%s, but its work is committed", end.reason)
        summary = self.finish_job(context, place, Ended(code, end.tail or (end.reason,)))
        # Only now: before, it would have been the provider's wish for a sidecar.
        self.do_xcom_push = self.pushes_summary
        return summary

    def _check_committed(
        self, context: "Context", place: "JobPlace", end: PodEnd, cause: Exception | None
    ) -> None:
        since = context["ti"].start_date or datetime.now(UTC)
        try:
            if is_committed_since(self.job_store(place), self.shard_number, since):
                return
        except VlmflowError as error:
            raise AirflowException(
                f"{end.reason}, and its report cannot be read: {error}"
            ) from error
        told = f" ({cause})" if cause is not None else ""
        raise AirflowException(
            f"{end.reason} and nothing says that its work is done{told}; a retry goes on where it "
            "stopped"
        ) from cause

    def _dress(self, spec: "JobSpec", context: "Context | None") -> None:
        """Fill in the provider's fields; whoever has rendered templates does it once more."""
        self.image = self.image or self.job_hook.settings.image
        if not self.image:
            raise SpecError("image must be given, here or in the connection of vlmflow_conn_id")
        self.cmds = self.cmds or ["vlmflow"]
        self.arguments = self.job_arguments(spec)
        self.annotations = {**self.annotations, SPEC_ANNOTATION: spec_for_pod(spec)}
        self.volumes, self.volume_mounts = with_volume(
            self.volumes, self.volume_mounts, spec_volume()
        )
        self.termination_grace_period = termination_grace(
            self.termination_grace_period, spec.limits.grace_seconds
        )
        self.env_vars = with_variables(self.env_vars, _task_variables(context))
        if has_read_only_root(self.container_security_context):
            self.env_vars = with_variables(self.env_vars, CACHE_VARIABLES)
            for place in writable_volumes():
                self.volumes, self.volume_mounts = with_volume(
                    self.volumes, self.volume_mounts, place
                )
        gpus = self.count("gpus", self.gpus, at_least=0)
        if gpus:
            self.container_resources = gpu_resources(
                gpus, self.gpu_resource, self.container_resources
            )
            self.tolerations = with_gpu_toleration(self.tolerations, self.gpu_resource)
            if not self.has_node_selector:
                self.node_selector = GPU_NODE_SELECTOR
            self.volumes, self.volume_mounts = with_volume(
                self.volumes, self.volume_mounts, shm_volume(self.shm_size)
            )


def _task_variables(context: "Context | None") -> dict[str, str]:
    """What the job tells MLflow about who started it."""
    if context is None:
        return {}
    ti = context["ti"]
    return {
        "AIRFLOW_CTX_DAG_ID": ti.dag_id,
        "AIRFLOW_CTX_TASK_ID": ti.task_id,
        "AIRFLOW_CTX_DAG_RUN_ID": ti.run_id,
        "AIRFLOW_CTX_TRY_NUMBER": str(ti.try_number),
        "AIRFLOW_CTX_MAP_INDEX": str(ti.map_index),
    }
