"""Shows in a task's log what the pods of a Job write, as it comes."""

import logging
import math
from datetime import UTC, datetime
from typing import Any

from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError


class PodLogs:
    """Remembers what was told of each pod."""

    def __init__(self, client: Any, container: str, log: logging.Logger) -> None:
        self._client = client
        self._container = container
        self._log = log
        self._last: dict[str, str] = {}  # by pod: the time of the last line told

    def tell(self, pods: list[k8s.V1Pod]) -> None:
        """Log the lines that are new. A log that cannot be had is no fault of the job."""
        for pod in pods:
            if pod.status.phase == "Pending":
                continue
            try:
                self._tell(pod.metadata.name, pod.metadata.namespace)
            except (ApiException, HTTPError) as error:
                self._log.warning("the log of pod %s cannot be read: %s", pod.metadata.name, error)

    def _tell(self, name: str, namespace: str) -> None:
        last = self._last.get(name, "")
        lines = self._client.read_namespaced_pod_log(
            name,
            namespace,
            container=self._container,
            timestamps=True,
            _preload_content=False,
            **({"since_seconds": _seconds_since(last)} if last else {}),
        )
        for raw in lines:
            stamp, _, line = raw.decode(errors="backslashreplace").rstrip("\n").partition(" ")
            if stamp > last:  # times of one clock and form; the API counts in whole seconds
                last = stamp
                self._log.info("[%s] %s", name, line)
        self._last[name] = last


def _seconds_since(stamp: str) -> int:
    # Nanoseconds are more than fromisoformat takes.
    when = datetime.fromisoformat(f"{stamp[:19]}+00:00")
    return math.ceil((datetime.now(UTC) - when).total_seconds()) + 1
