"""`VLMBatchInferencePodOperator`: a job in a pod of its own."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import generic_api_retry
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from vlmflow.airflow.operators.pod_end import PodEnd, end_of, gone
from vlmflow.airflow.operators.pod_job import PodJobMixin

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

_GONE_POLL_SECONDS = 1.0
_NOT_FOUND = 404


class VLMBatchInferencePodOperator(PodJobMixin, KubernetesPodOperator):
    """Run a job, or a shard of one, in a pod.

    All arguments of `KubernetesPodOperator` are taken, but for `name` (the job's; the pod's is
    `pod_name`) and `arguments`. What the task comes to is decided by what the job committed: a pod
    that was evicted, that vanished while the task was deferred, or whose log could not be read is
    no failure if the report was written, and exit code 0 without one is no success. A retry starts
    a new pod, unless one of the task is still alive, and goes on from what is committed.
    """

    template_fields = (
        *PodJobMixin.template_fields,
        *KubernetesPodOperator.template_fields,
        "gpus",
        "shm_size",
    )
    template_fields_renderers = {
        **KubernetesPodOperator.template_fields_renderers,
        **PodJobMixin.template_fields_renderers,
    }
    pod_end: PodEnd | None = None

    def execute(self, context: "Context") -> Any:
        """Start the pod and wait for it, or defer."""
        self.push_place_links(context, self.job_place())
        return self._judged(context, lambda: KubernetesPodOperator.execute(self, context))

    def build_pod_request_obj(
        self, context: "Context | None" = None, *, dry_run: bool = False
    ) -> "k8s.V1Pod":
        """The provider's pod with the job in it. Raises AirflowFailException with a sentence."""
        self.dress(context)
        pod = super().build_pod_request_obj(context, dry_run=dry_run)
        self.check_dressed(pod.spec)
        return pod

    def trigger_reentry(self, context: "Context", event: dict[str, Any]) -> Any:
        """Go on when the trigger has seen the pod's end, or cannot see it."""
        self.pod_end = gone(f"pod {event['name']}")
        return self._judged(
            context, lambda: KubernetesPodOperator.trigger_reentry(self, context, event)
        )

    def get_or_create_pod(self, pod_request_obj: "k8s.V1Pod", context: "Context") -> "k8s.V1Pod":
        """A pod of this task that is alive or has succeeded, else a new one.

        The provider takes a pod up that is being deleted or has failed, if pods are kept.
        """
        finished = self._settle_earlier_pods(pod_request_obj.metadata.namespace, context)
        return finished or super().get_or_create_pod(pod_request_obj, context)

    def cleanup(self, pod: "k8s.V1Pod", remote_pod: "k8s.V1Pod", *args: Any, **kwargs: Any) -> None:
        """Look at the pod before it is deleted."""
        if remote_pod is not None and not self._killed:
            self.pod_end = self._look(remote_pod)
        try:
            super().cleanup(pod, remote_pod, *args, **kwargs)
        except AirflowSkipException:
            raise
        except AirflowException:
            # That the pod has failed is seen, and would hide what was raised before it.
            self.log.info("%s", self.pod_end.reason if self.pod_end is not None else "no pod")

    def _judged(self, context: "Context", run: Callable[[], Any]) -> Any:
        cause: Exception | None = None
        try:
            run()
        except (AirflowFailException, AirflowSkipException):
            raise
        except (AirflowException, ApiException, HTTPError) as error:
            cause = error
            if self._killed or self.pod_end is None:  # no pod of ours came to an end
                raise
        return self.judge(context, self.pod_end or gone("the pod"), cause)

    def _look(self, pod: "k8s.V1Pod") -> PodEnd:
        try:
            pod = self.hook.get_pod(pod.metadata.name, pod.metadata.namespace)
        except ApiException as error:
            if error.status != _NOT_FOUND:
                return PodEnd(None, f"pod {pod.metadata.name} cannot be seen: {error.reason}")
            return gone(f"pod {pod.metadata.name}")
        return end_of(pod, self.base_container_name)

    def _settle_earlier_pods(self, namespace: str, context: "Context") -> "k8s.V1Pod | None":
        """Have done with pods of earlier tries; return one that has succeeded."""
        succeeded = None
        for pod in self._earlier_pods(namespace, context):
            if pod.metadata.deletion_timestamp is not None:
                self._wait_until_gone(pod)
            elif pod.status.phase == "Failed":
                self.log.info("pod %s of an earlier try has failed", pod.metadata.name)
                self.patch_already_checked(pod, reraise=False)
                self.process_pod_deletion(pod, reraise=False)
            elif pod.status.phase == "Succeeded" and self.durable:
                succeeded = pod
        return succeeded

    @generic_api_retry
    def _earlier_pods(self, namespace: str, context: "Context") -> "list[k8s.V1Pod]":
        selector = self._build_find_pod_label_selector(context)
        return list(self.client.list_namespaced_pod(namespace, label_selector=selector).items)

    def _wait_until_gone(self, pod: "k8s.V1Pod") -> None:
        """A pod that ends holds its shard until it has committed; the next would be turned away."""
        name, namespace = pod.metadata.name, pod.metadata.namespace
        self.log.info("waiting for pod %s of an earlier try to end", name)
        deadline = time.monotonic() + (pod.metadata.deletion_grace_period_seconds or 0) + 30
        while time.monotonic() < deadline:
            try:
                if self.hook.get_pod(name, namespace).metadata.uid != pod.metadata.uid:
                    return
            except ApiException as error:
                if error.status == _NOT_FOUND:
                    return
                raise
            time.sleep(_GONE_POLL_SECONDS)
        raise AirflowException(f"pod {name} of an earlier try does not end; delete it")
