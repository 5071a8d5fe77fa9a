"""A cluster of one machine: pods are local processes, and may be evicted or vanish.

What is promised of a pod's life is what the provider's code looks at: Pending, Running, then
Succeeded or Failed with the container's exit code; a deletion is SIGTERM, the grace, SIGKILL, and
the object is gone when the process is.
"""

import copy
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.airflow.kubernetes_api.containers import ContainerProcess, Image, LogLines
from tests.airflow.kubernetes_api.jobs import JobController
from tests.airflow.kubernetes_api.objects import ApiError, is_over, merged, now, select
from tests.airflow.kubernetes_api.schema import faults

DEFAULT_GRACE_SECONDS = 30


class Cluster:
    """Objects by (namespace, name). All methods may be called from any thread."""

    def __init__(
        self,
        folder: Path,
        images: Mapping[str, Image],
        secrets: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.pending_seconds = 0.0  # until a pod's containers start
        self.created: list[dict[str, Any]] = []  # every manifest that was accepted, as it came
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.jobs = JobController(self)
        self.events: list[dict[str, Any]] = []
        self.lock = threading.RLock()
        self._folder = folder
        self._images = images
        self._secrets = secrets or {}
        self._processes: dict[str, ContainerProcess] = {}  # by the pod's uid
        self._version = 0

    # -- what the API server asks

    def create_pod(self, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Raises ApiError if a strict API server would refuse it."""
        with self.lock:
            pod = self.admitted(namespace, manifest, self.pods)
            pod["status"] = {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "True"}],
            }
            self._tell(pod, "Normal", "Scheduled", "assigned to this machine")
            timer = threading.Timer(self.pending_seconds, self._start, [pod["metadata"]["uid"]])
            timer.daemon = True
            timer.start()
            return copy.deepcopy(pod)

    def admitted(
        self, namespace: str, manifest: dict[str, Any], store: dict[tuple[str, str], dict[str, Any]]
    ) -> dict[str, Any]:
        """Check a manifest and store what an API server makes of it."""
        found = faults(manifest)
        if found:
            raise ApiError(422, "Invalid", "; ".join(found))
        name = manifest["metadata"]["name"]
        if (namespace, name) in store:
            raise ApiError(409, "AlreadyExists", f"{name!r} already exists")
        self.created.append(copy.deepcopy(manifest))
        stored = copy.deepcopy(manifest)
        stored["metadata"] |= {
            "namespace": namespace,
            "uid": str(uuid4()),
            "creationTimestamp": now(),
        }
        store[namespace, name] = stored
        self.touch(stored)
        return stored

    def read_pod(self, namespace: str, name: str) -> dict[str, Any]:
        """Raises ApiError, 404."""
        with self.lock:
            return copy.deepcopy(self._pod(namespace, name))

    def select_pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        with self.lock:
            return select(self.pods, namespace, selector)

    def patch_pod(self, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            pod = self._pod(namespace, name)
            pod["metadata"] = merged(pod["metadata"], patch.get("metadata", {}))
            self.touch(pod)
            return copy.deepcopy(pod)

    def delete_pod(self, namespace: str, name: str, grace: int | None = None) -> dict[str, Any]:
        """SIGTERM now, SIGKILL after the grace; gone once the process is."""
        with self.lock:
            pod = self._pod(namespace, name)
            seconds = pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
            seconds = seconds if grace is None else grace
            process = self._processes.get(pod["metadata"]["uid"])
            if process is None or is_over(pod):
                self._remove(pod)
                return copy.deepcopy(pod)
            pod["metadata"].setdefault("deletionTimestamp", now())
            pod["metadata"]["deletionGracePeriodSeconds"] = seconds
            self.touch(pod)
            process.terminate()
            timer = threading.Timer(seconds, process.kill)
            timer.daemon = True
            timer.start()
            return copy.deepcopy(pod)

    def log(self, namespace: str, name: str) -> LogLines:
        """Raises ApiError where a kubelet has no log to give."""
        with self.lock:
            process = self._processes.get(self._pod(namespace, name)["metadata"]["uid"])
            if process is None:
                raise ApiError(400, "BadRequest", f"container of pod {name!r} is waiting to start")
            return process.log

    # -- what happens to a cluster

    def evict(self, name: str, namespace: str = "default") -> None:
        """As a kubelet does that is short of memory: no grace, and the object stays."""
        with self.lock:
            pod = self._pod(namespace, name)
            pod["status"] |= {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "The node was low on resource: memory.",
            }
            pod["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True"})
            self.touch(pod)
            self._tell(pod, "Warning", "Evicted", "The node was low on resource: memory.")
            process = self._processes.get(pod["metadata"]["uid"])
        if process is not None:
            process.kill()
        else:
            self.jobs.pod_ended(pod)

    def vanish(self, name: str, namespace: str = "default") -> None:
        """As when a node is lost and its pods are collected: neither process nor object."""
        with self.lock:
            pod = self._pod(namespace, name)
            process = self._processes.get(pod["metadata"]["uid"])
            if process is not None:
                process.kill()
            self._remove(pod)

    def wait_for(self, what: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Wait until something holds; return it."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"not within {seconds} s; pods: {self._phases()}")
            time.sleep(0.02)
        return found

    def pod_names(self, phase: str | None = None) -> list[str]:
        with self.lock:
            return [
                name
                for (_, name), pod in self.pods.items()
                if phase is None or pod["status"]["phase"] == phase
            ]

    def process_of(self, name: str, namespace: str = "default") -> ContainerProcess:
        with self.lock:
            return self._processes[self._pod(namespace, name)["metadata"]["uid"]]

    def shut_down(self) -> None:
        """Leave no process behind."""
        with self.lock:
            processes = list(self._processes.values())
        for process in processes:
            process.kill()

    def touch(self, item: dict[str, Any]) -> None:
        """A new version of an object."""
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)

    # -- a pod's life

    def _pod(self, namespace: str, name: str) -> dict[str, Any]:
        pod = self.pods.get((namespace, name))
        if pod is None:
            raise ApiError(404, "NotFound", f'pods "{name}" not found')
        return pod

    def _start(self, uid: str) -> None:
        with self.lock:
            pod = next((p for p in self.pods.values() if p["metadata"]["uid"] == uid), None)
            if pod is None or pod["status"]["phase"] != "Pending":
                return
            container = pod["spec"]["containers"][0]
            image = self._images.get(container["image"])
            if image is None:
                waiting = {"reason": "ErrImagePull", "message": f"{container['image']} not found"}
                pod["status"]["containerStatuses"] = [_status(container, {"waiting": waiting})]
                self.touch(pod)
                return
            folder = self._folder / uid
            folder.mkdir(parents=True)
            self._processes[uid] = ContainerProcess(
                pod, image, self._secrets, folder, lambda code: self._exited(uid, code)
            )
            running = {"startedAt": now()}
            pod["status"]["phase"] = "Running"
            pod["status"]["startTime"] = now()
            pod["status"]["containerStatuses"] = [_status(container, {"running": running})]
            self._tell(pod, "Normal", "Started", "Started container")
            self.touch(pod)

    def _exited(self, uid: str, code: int) -> None:
        with self.lock:
            pod = next((p for p in self.pods.values() if p["metadata"]["uid"] == uid), None)
            if pod is None:
                return
            ended = {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "finishedAt": now(),
            }
            container = pod["spec"]["containers"][0]
            if code and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
                ended["message"] = self._processes[uid].log.text()[-2048:]
            pod["status"]["containerStatuses"] = [_status(container, {"terminated": ended})]
            if pod["status"]["phase"] == "Running":
                pod["status"]["phase"] = "Succeeded" if code == 0 else "Failed"
            self.touch(pod)
            if "deletionTimestamp" in pod["metadata"]:
                self._remove(pod)
            else:
                self.jobs.pod_ended(pod)

    def _remove(self, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        del self.pods[metadata["namespace"], metadata["name"]]
        if not is_over(pod):
            pod["status"]["phase"] = "Failed"
        self.jobs.pod_ended(pod)

    def _tell(self, pod: dict[str, Any], kind: str, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{len(self.events)}",
                "namespace": metadata["namespace"],
                "uid": str(uuid4()),
                "resourceVersion": str(self._version + 1),
            },
            "involvedObject": {"kind": "Pod", "name": metadata["name"]},
            "type": kind,
            "reason": reason,
            "message": message,
        }
        self.events.append(event)

    def _phases(self) -> dict[str, str]:
        return {name: pod["status"]["phase"] for (_, name), pod in self.pods.items()}


def _status(container: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }
