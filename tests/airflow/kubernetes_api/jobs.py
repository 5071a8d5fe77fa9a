"""The Job controller: pods of a Job are made, replaced after a failure, and counted."""

import copy
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tests.airflow.kubernetes_api.objects import ApiError, is_over, merged, now, select

if TYPE_CHECKING:
    from tests.airflow.kubernetes_api.cluster import Cluster

DEFAULT_BACKOFF_LIMIT = 6


class JobController:
    """Jobs by (namespace, name). The cluster's lock guards all of it."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self.jobs: dict[tuple[str, str], dict[str, Any]] = {}

    def create(self, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Raises ApiError."""
        with self._cluster.lock:
            job = self._cluster.admitted(namespace, manifest, self.jobs)
            job["status"] = {}
            self._advance(job)
            return copy.deepcopy(job)

    def read(self, namespace: str, name: str) -> dict[str, Any]:
        """Raises ApiError, 404."""
        with self._cluster.lock:
            return copy.deepcopy(self._job(namespace, name))

    def select(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        with self._cluster.lock:
            return select(self.jobs, namespace, selector)

    def patch(self, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        """Kueue admits a Job by such a patch of spec.suspend."""
        with self._cluster.lock:
            job = self._job(namespace, name)
            for part in ("metadata", "spec"):
                job[part] = merged(job[part], patch.get(part, {}))
            self._cluster.touch(job)
            self._advance(job)
            return copy.deepcopy(job)

    def delete(self, namespace: str, name: str, policy: str, grace: int | None) -> dict[str, Any]:
        """Pods get their grace; with Foreground the Job stays until they are gone."""
        with self._cluster.lock:
            job = self._job(namespace, name)
            job["metadata"].setdefault("deletionTimestamp", now())
            pods = [] if policy == "Orphan" else self._pods(job)
            for pod in pods:
                self._cluster.delete_pod(namespace, pod["metadata"]["name"], grace)
            if policy != "Foreground" or not self._pods(job):
                self.jobs.pop((namespace, name), None)
            self._cluster.touch(job)
            return copy.deepcopy(job)

    def pod_ended(self, pod: dict[str, Any]) -> None:
        """A pod has ended, was evicted or is gone."""
        with self._cluster.lock:
            owners = pod["metadata"].get("ownerReferences") or [{}]
            job = next(
                (j for j in self.jobs.values() if j["metadata"]["uid"] == owners[0].get("uid")),
                None,
            )
            if job is None:
                return
            if "deletionTimestamp" in job["metadata"]:
                if not self._pods(job):
                    del self.jobs[job["metadata"]["namespace"], job["metadata"]["name"]]
                return
            if pod["metadata"].get("counted") or self._is_finished(job):
                return
            pod["metadata"]["counted"] = True
            status = job["status"]
            if pod["status"]["phase"] == "Succeeded":
                status["succeeded"] = status.get("succeeded", 0) + 1
            else:
                action = _action(job, pod)
                if action == "FailJob":
                    self._end(job, "Failed", "PodFailurePolicy")
                elif action == "Count":
                    status["failed"] = status.get("failed", 0) + 1
                    if status["failed"] > job["spec"].get("backoffLimit", DEFAULT_BACKOFF_LIMIT):
                        self._end(job, "Failed", "BackoffLimitExceeded")
            self._advance(job)

    def _advance(self, job: dict[str, Any]) -> None:
        """Make the pods that are wanted; end a Job that is done."""
        if self._is_finished(job):
            return
        if job["spec"].get("suspend"):
            job["status"]["conditions"] = [{"type": "Suspended", "status": "True"}]
            return
        job["status"]["conditions"] = []
        num_active = sum(not is_over(pod) for pod in self._pods(job))
        num_succeeded = job["status"].get("succeeded", 0)
        completions = job["spec"].get("completions")
        num_wanted = job["spec"].get("parallelism", 1)
        if completions is not None:
            num_wanted = min(num_wanted, completions - num_succeeded)
            is_done = num_succeeded >= completions
        else:  # a work queue: one that succeeds says that nothing is left
            num_wanted = 0 if num_succeeded else num_wanted
            is_done = num_succeeded > 0 and num_active == 0
        if is_done:
            self._end(job, "Complete", "CompletionsReached")
            return
        for _ in range(num_active, num_wanted):
            num_active += 1
            self._cluster.create_pod(job["metadata"]["namespace"], _pod_of(job))
        job["status"]["active"] = num_active
        self._cluster.touch(job)

    def _end(self, job: dict[str, Any], kind: str, reason: str) -> None:
        job["status"]["conditions"] = [
            {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now()}
        ]
        job["status"].pop("active", None)
        self._cluster.touch(job)
        for pod in self._pods(job):
            if not is_over(pod):
                self._cluster.delete_pod(job["metadata"]["namespace"], pod["metadata"]["name"])

    def _pods(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        uid = job["metadata"]["uid"]
        return [
            pod
            for pod in self._cluster.pods.values()
            if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or [])
        ]

    def _job(self, namespace: str, name: str) -> dict[str, Any]:
        job = self.jobs.get((namespace, name))
        if job is None:
            raise ApiError(404, "NotFound", f'jobs.batch "{name}" not found')
        return job

    @staticmethod
    def _is_finished(job: dict[str, Any]) -> bool:
        conditions = job["status"].get("conditions") or []
        return any(condition["type"] in ("Complete", "Failed") for condition in conditions)


def _pod_of(job: dict[str, Any]) -> dict[str, Any]:
    metadata, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
    given = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name'][:57]}-{uuid4().hex[:5]}",
            "labels": (given.get("labels") or {})
            | {
                "job-name": metadata["name"],
                "batch.kubernetes.io/job-name": metadata["name"],
                "batch.kubernetes.io/controller-uid": metadata["uid"],
            },
            "annotations": given.get("annotations") or {},
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": template["spec"],
    }


def _action(job: dict[str, Any], pod: dict[str, Any]) -> str:
    """What the Job's podFailurePolicy says of a pod that failed."""
    statuses = pod["status"].get("containerStatuses") or []
    codes = [status["state"].get("terminated", {}).get("exitCode") for status in statuses]
    conditions = {
        (condition["type"], condition["status"]) for condition in pod["status"]["conditions"]
    }
    for rule in (job["spec"].get("podFailurePolicy") or {}).get("rules", []):
        on_codes = rule.get("onExitCodes")
        if on_codes is not None and any(
            code is not None and (code in on_codes["values"]) == (on_codes["operator"] == "In")
            for code in codes
        ):
            return str(rule["action"])
        for pattern in rule.get("onPodConditions") or []:
            if (pattern["type"], pattern.get("status", "True")) in conditions:
                return str(rule["action"])
    return "Count"
