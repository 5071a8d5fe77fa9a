"""`VLMBatchInferenceJobOperator`: a job as a Kubernetes Job, of one worker or of several."""

import time
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import generic_api_retry
from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException

from vlmflow.airflow.operators.pod_end import PodEnd, end_of_job, gone
from vlmflow.airflow.operators.pod_job import PodJobMixin
from vlmflow.airflow.operators.pod_logs import PodLogs
from vlmflow.airflow.operators.pod_parts import SPEC_ANNOTATION, failure_policy
from vlmflow.airflow.triggers.kubernetes_job import KubernetesJobEndTrigger
from vlmflow.job.errors import SpecError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from vlmflow.job.spec import JobSpec

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_NOT_FOUND = 404


class VLMBatchInferenceJobOperator(PodJobMixin, KubernetesJobOperator):
    """Run a job, or a shard of one, as a Kubernetes Job.

    All arguments of `KubernetesJobOperator` are taken, but for `name` (the job's; the Job's is
    `pod_name`), `arguments`, `parallelism` and `completions`.

    :param queue_name: Kueue's LocalQueue; the Job is made suspended, and Kueue lets it begin.
    :param workers: pods at the same time; more than one take shards that nobody does
        (`num_shards` says into how many the manifest is cut).
    :param backoff_limit: how many pods may fail before the Job does. A pod that is evicted is
        replaced and not counted, and one that ends with 2 or 3 fails the Job at once: asked again,
        it would say the same.
    :param ttl_seconds_after_finished: then Kubernetes deletes the Job, its pods and their logs.

    Between two pods of a Job nothing is lost but what was not committed. A worker of Airflow that
    dies does not end the Job: the next try takes it up again.
    """

    template_fields = (
        *PodJobMixin.template_fields,
        *KubernetesJobOperator.template_fields,
        "gpus",
        "shm_size",
        "queue_name",
        "workers",
    )
    template_fields_renderers = {
        **KubernetesJobOperator.template_fields_renderers,
        **PodJobMixin.template_fields_renderers,
    }

    suspend: bool | None  # the provider's

    def __init__(
        self,
        *,
        queue_name: str | None = None,
        workers: int | str = 1,
        suspend: bool | None = None,
        ttl_seconds_after_finished: int | None = 86400,
        **kwargs: Any,
    ) -> None:
        for name in ("parallelism", "completions", "completion_mode"):
            if kwargs.get(name) is not None:
                raise SpecError(f"{name} is not an argument of this operator: give workers")
        super().__init__(
            suspend=suspend,
            ttl_seconds_after_finished=ttl_seconds_after_finished,
            wait_until_job_complete=True,
            **kwargs,
        )
        self.queue_name = queue_name
        self.workers = workers

    def build_job_request_obj(self, context: "Context | None" = None) -> k8s.V1Job:
        """The provider's Job with ours in it. Raises AirflowFailException with a sentence."""
        self.dress(context)
        if self.queue_name and self.suspend is None:
            self.suspend = True  # else it would begin before Kueue has seen it
        job = super().build_job_request_obj(context)
        self.check_dressed(job.spec.template.spec)
        labels = {**job.metadata.labels, **self._get_ti_pod_labels(context)}
        if self.queue_name:
            labels[QUEUE_LABEL] = self.queue_name
        job.metadata.labels = labels
        job.metadata.annotations.pop(SPEC_ANNOTATION)  # it is the pods'
        if job.spec.pod_failure_policy is None:
            job.spec.pod_failure_policy = failure_policy(self.base_container_name)
        return job

    def job_arguments(self, spec: "JobSpec") -> list[str]:
        """The arguments of each worker. Raises SpecError if there is nothing to share."""
        arguments = super().job_arguments(spec)
        self.parallelism = self.count("workers", self.workers, at_least=1)
        if self.parallelism == 1:
            return arguments
        if self.shard_number is not None:
            raise SpecError(f"workers={self.parallelism} share a job; with shard there is one")
        if spec.num_shards < self.parallelism:
            raise SpecError(
                f"workers is {self.parallelism} and num_shards {spec.num_shards}: each worker does "
                "a shard at a time; raise num_shards, to several times as many"
            )
        return [*arguments, "--worker"]

    def execute(self, context: "Context") -> Any:
        """Make the Job, or take up an earlier try's, and wait for its end, or defer."""
        self.push_place_links(context, self.job_place())
        self.name = self._set_name(self.name)
        request = self.build_job_request_obj(context)
        self.job = self._find_job(request, context) or self.create_job(request)
        name, namespace = self.job.metadata.name, self.job.metadata.namespace
        context["ti"].xcom_push(key="job_name", value=name)
        context["ti"].xcom_push(key="job_namespace", value=namespace)
        if self.deferrable:
            self._defer(context, name, namespace)
        logs = PodLogs(self.client, self.base_container_name, self.log)
        return self._finish(context, self._wait(logs), logs)

    def execute_complete(self, context: "Context", event: dict[str, Any], **_: Any) -> Any:
        """Go on when the trigger has seen the Job's end, that it is gone, or that it is late."""
        self.job = k8s.V1Job(
            metadata=k8s.V1ObjectMeta(name=event["name"], namespace=event["namespace"])
        )
        if event["is_late"]:
            self.on_kill()
            raise AirflowException(
                f"Job {event['name']} was not done within execution_timeout and is deleted; a "
                "retry goes on where it stopped"
            )
        logs = PodLogs(self.client, self.base_container_name, self.log)
        return self._finish(context, self._read(), logs)

    def _defer(self, context: "Context", name: str, namespace: str) -> None:
        self.convert_config_file_to_dict()
        deadline = None
        if self.execution_timeout is not None:
            deadline = (context["ti"].start_date + self.execution_timeout).timestamp()
        trigger = KubernetesJobEndTrigger(
            job_name=name,
            job_namespace=namespace,
            kubernetes_conn_id=self.kubernetes_conn_id,
            cluster_context=self.cluster_context,
            config_dict=self._config_dict,
            in_cluster=self.in_cluster,
            poll_interval=self.job_poll_interval,
            propagation_policy=self.on_kill_propagation_policy,
            deadline=deadline,
        )
        self.defer(trigger=trigger, method_name="execute_complete")

    def _wait(self, logs: PodLogs) -> k8s.V1Job | None:
        """The Job once it has ended; None if it is gone."""
        while (job := self._read()) is not None and not self.hook.is_job_complete(job):
            logs.tell(self._pods())
            time.sleep(self.job_poll_interval)
        return job

    def _read(self) -> k8s.V1Job | None:
        try:
            return self.hook.get_job_status(self.job.metadata.name, self.job.metadata.namespace)
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    @generic_api_retry
    def _pods(self) -> list[k8s.V1Pod]:
        found = self.client.list_namespaced_pod(
            self.job.metadata.namespace, label_selector=f"job-name={self.job.metadata.name}"
        )
        return list(found.items)

    def _finish(self, context: "Context", job: k8s.V1Job | None, logs: PodLogs) -> dict[str, Any]:
        pods = self._pods()
        logs.tell(pods)
        end = self._end(job, pods)
        try:
            return self.judge(context, end, None)
        finally:
            if job is not None:
                self._mark_seen(job)

    def _mark_seen(self, job: k8s.V1Job) -> None:
        """A later try begins anew. What the task comes to does not depend on it."""
        body = {"metadata": {"labels": {self.POD_CHECKED_KEY: "True"}}}
        try:
            self.hook.patch_namespaced_job(job.metadata.name, job.metadata.namespace, body)
        except ApiException as error:
            self.log.warning("Job %s cannot be marked: %s", job.metadata.name, error.reason)

    def _end(self, job: k8s.V1Job | None, pods: list[k8s.V1Pod]) -> PodEnd:
        if job is None:
            return gone(f"Job {self.job.metadata.name}")
        return end_of_job(job, pods, self.base_container_name)

    def _find_job(self, request: k8s.V1Job, context: "Context") -> k8s.V1Job | None:
        """The Job of an earlier try that nobody has seen the end of."""
        labels = self._get_ti_pod_labels(context, include_try_number=False)
        selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
        selector += f",{self.POD_CHECKED_KEY}!=True"
        for job in self._jobs(request.metadata.namespace, selector):
            if job.metadata.deletion_timestamp is not None:
                self._wait_until_gone(job)
            elif not self.hook.is_job_failed(job):
                self.log.info("taking up Job %s of an earlier try", job.metadata.name)
                return job
        return None

    @generic_api_retry
    def _jobs(self, namespace: str, selector: str) -> list[k8s.V1Job]:
        return list(self.job_client.list_namespaced_job(namespace, label_selector=selector).items)

    def _wait_until_gone(self, job: k8s.V1Job) -> None:
        """Its workers hold their shards until they have committed."""
        self.log.info("waiting for Job %s of an earlier try to end", job.metadata.name)
        self.job = job
        deadline = time.monotonic() + (self.termination_grace_period or 0) + 30
        while self._read() is not None:
            if time.monotonic() >= deadline:
                raise AirflowException(f"Job {job.metadata.name} does not end; delete it")
            time.sleep(1.0)
