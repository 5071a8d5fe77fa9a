"""An indexed Job without a cluster: its pods are local processes, its rules are Kubernetes'.

What the Job controller does with the end of a pod is done here, by the Job's own podFailurePolicy,
backoffLimitPerIndex and successPolicy, but at once: there is no back-off between two pods.
"""

import copy
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.airflow.kubernetes_api.containers import ContainerProcess, Image


@dataclass
class Pod:
    """One attempt of one index."""

    index: int
    attempt: int
    process: ContainerProcess
    is_disrupted: bool = False  # evicted: its condition DisruptionTarget is then true
    exit_code: int | None = None
    action: str = ""  # what became of it: Complete, FailJob, Ignore, Count


class IndexedJob:
    """Starts the pods of a Job; `wait` follows them to the Job's end."""

    def __init__(
        self,
        job: dict[str, Any],
        config_maps: Mapping[str, Mapping[str, str]],
        secrets: Mapping[str, Mapping[str, str]],
        image: Image,
        folder: Path,
    ) -> None:
        self._spec = job["spec"]
        self._config_maps = config_maps
        self._secrets = secrets
        self._image = image
        self._folder = folder
        self._changed = threading.Condition()
        self.pods: list[Pod] = []
        self.condition: str | None = None  # Complete or Failed
        self._counted: Counter[int] = Counter()  # failures, by index
        self._failed: set[int] = set()  # indexes
        self._waiting = list(range(self._spec["completions"]))  # indexes without a pod
        for _ in range(self._spec["parallelism"]):
            self._start(self._waiting.pop(0))

    def running(self) -> list[Pod]:
        return [pod for pod in self.pods if pod.exit_code is None]

    def evict(self, pod: Pod) -> None:
        """As a drain or the scheduler does."""
        pod.is_disrupted = True
        pod.process.terminate()

    def wait(self, seconds: float) -> str:
        """Wait until the Job has a condition and no pod runs; returns the condition."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self.condition is None or self.running():
                left = deadline - time.monotonic()
                assert left > 0, self.told()
                self._changed.wait(left)
        assert self.condition is not None
        return self.condition

    def kill(self) -> None:
        """Leave no process behind, whatever became of the Job."""
        for pod in self.running():
            pod.process.kill()

    def told(self) -> str:
        """What each pod said, for a test that failed."""
        return "\n".join(
            f"--- {pod.index}/{pod.attempt} {pod.exit_code} {pod.action}\n{pod.process.log.text()}"
            for pod in self.pods
        )

    def _start(self, index: int) -> None:
        template = copy.deepcopy(self._spec["template"])
        attempt = sum(pod.index == index for pod in self.pods)
        template["metadata"]["name"] = f"pod-{index}-{attempt}"
        (container,) = template["spec"]["containers"]
        # Kubernetes adds it to each container of an indexed Job.
        container["env"].append({"name": "JOB_COMPLETION_INDEX", "value": str(index)})
        folder = self._folder / template["metadata"]["name"]
        folder.mkdir(parents=True)
        with self._changed:  # its end must find it in the list
            process = ContainerProcess(
                template,
                self._image,
                self._secrets,
                folder,
                lambda code: self._ended(pod, code),
                self._config_maps,
            )
            pod = Pod(index, attempt, process)
            self.pods.append(pod)

    def _ended(self, pod: Pod, code: int) -> None:
        with self._changed:
            pod.exit_code = code
            pod.action = "Complete" if code == 0 else self._action(pod)
            if self.condition is None:
                self._go_on(pod)
            self._changed.notify_all()

    def _go_on(self, pod: Pod) -> None:
        """An index is tried again, or is through and lets the next begin."""
        if pod.action == "FailJob":
            self._end("Failed")
            return
        if pod.action != "Complete":
            self._counted[pod.index] += pod.action == "Count"
            if self._counted[pod.index] <= self._spec["backoffLimitPerIndex"]:
                self._start(pod.index)
                return
            self._failed.add(pod.index)
        num_complete = sum(other.action == "Complete" for other in self.pods)
        if num_complete >= self._num_wanted():
            self._end("Complete")
        elif num_complete + len(self._failed) == self._spec["completions"]:
            self._end("Failed")
        elif self._waiting:
            self._start(self._waiting.pop(0))

    def _num_wanted(self) -> int:
        """Indexes that must succeed."""
        policy = self._spec.get("successPolicy")
        if policy is None:
            return int(self._spec["completions"])
        (rule,) = policy["rules"]
        return int(rule["succeededCount"])

    def _end(self, condition: str) -> None:
        self.condition = condition
        for pod in self.running():
            pod.process.terminate()

    def _action(self, pod: Pod) -> str:
        """Of the first rule that fits; what none fits is counted."""
        for rule in self._spec["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes")
            if codes is not None:
                assert codes["operator"] == "In"
                if pod.exit_code in codes["values"]:
                    return str(rule["action"])
            for condition in rule.get("onPodConditions", ()):
                assert condition == {"type": "DisruptionTarget", "status": "True"}
                if pod.is_disrupted:
                    return str(rule["action"])
        return "Count"
