"""Waits for a Kubernetes Job's end, and deletes it if its task is killed meanwhile.

The provider's own trigger wants pods to be there already, which a Job in a queue does not have;
it leaves the Job running when its task is killed; one that is gone is an error of the trigger; and
it looks for the cluster in the default kubeconfig, whatever file the operator was given.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
from airflow.triggers.base import BaseTrigger, TriggerEvent
from kubernetes_asyncio.client import BatchV1Api
from kubernetes_asyncio.client.exceptions import ApiException

_NOT_FOUND = 404


class KubernetesJobEndTrigger(BaseTrigger):
    """Fires once, with the Job's name, namespace and `is_late`; the operator looks for itself.

    :param deadline: seconds since the epoch, after which the Job is late. Airflow's own timeout of
        a deferred task would fail it without a word to the operator, and the Job would go on.
    """

    def __init__(
        self,
        *,
        job_name: str,
        job_namespace: str,
        kubernetes_conn_id: str | None = None,
        cluster_context: str | None = None,
        config_dict: dict[str, Any] | None = None,
        in_cluster: bool | None = None,
        poll_interval: float = 10.0,
        propagation_policy: str = "Foreground",
        deadline: float | None = None,
    ) -> None:
        super().__init__()
        self.job_name = job_name
        self.job_namespace = job_namespace
        self.kubernetes_conn_id = kubernetes_conn_id
        self.cluster_context = cluster_context
        self.config_dict = config_dict
        self.in_cluster = in_cluster
        self.poll_interval = poll_interval
        self.propagation_policy = propagation_policy
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, for the triggerer."""
        return (
            "vlmflow.airflow.triggers.kubernetes_job.KubernetesJobEndTrigger",
            {
                "job_name": self.job_name,
                "job_namespace": self.job_namespace,
                "kubernetes_conn_id": self.kubernetes_conn_id,
                "cluster_context": self.cluster_context,
                "config_dict": self.config_dict,
                "in_cluster": self.in_cluster,
                "poll_interval": self.poll_interval,
                "propagation_policy": self.propagation_policy,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until the Job is complete, failed, not there any more, or late."""
        while not await self._is_over():
            if self.deadline is not None and time.time() >= self.deadline:
                yield self._event(is_late=True)
                return
            await asyncio.sleep(self.poll_interval)
        yield self._event(is_late=False)

    async def _is_over(self) -> bool:
        try:
            job = await self.hook.get_job_status(self.job_name, self.job_namespace)
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise
            return True
        return bool(self.hook.is_job_complete(job))

    def _event(self, *, is_late: bool) -> TriggerEvent:
        return TriggerEvent(
            {"name": self.job_name, "namespace": self.job_namespace, "is_late": is_late}
        )

    async def on_kill(self) -> None:
        """Delete the Job; its pods get their grace. Airflow 3.3 calls it when a user kills."""
        async with self.hook.get_conn() as connection:
            try:
                await BatchV1Api(connection).delete_namespaced_job(
                    self.job_name, self.job_namespace, propagation_policy=self.propagation_policy
                )
            except ApiException as error:
                if error.status != _NOT_FOUND:
                    raise

    @cached_property
    def hook(self) -> AsyncKubernetesHook:
        return AsyncKubernetesHook(
            conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            config_dict=self.config_dict,
            cluster_context=self.cluster_context,
        )
