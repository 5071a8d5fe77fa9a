"""How a job's container ended, as far as its pod can tell.

A pod's word is not what a task comes to: an exit code of the job's own says what to look for in the
output, and where the cluster ended the job, or the pod is gone, the output alone says.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from kubernetes.client import models as k8s

from vlmflow.job.errors import (
    EXIT_BAD_INPUT,
    EXIT_COMPLETE,
    EXIT_ENGINE,
    EXIT_FAILURES,
    EXIT_RESUMABLE,
)

if TYPE_CHECKING:
    from vlmflow.job.store import Store

# The job's own; others are a signal's, an interpreter's or a shell's.
OWN_CODES = (EXIT_COMPLETE, EXIT_BAD_INPUT, EXIT_FAILURES, EXIT_ENGINE, EXIT_RESUMABLE)
# Of several workers: what a retry cannot mend goes before what it can, and that before success.
_GRAVITY = (EXIT_BAD_INPUT, EXIT_FAILURES, EXIT_ENGINE, None, EXIT_RESUMABLE, EXIT_COMPLETE)


@dataclass(frozen=True, slots=True)
class PodEnd:
    """What became of a container."""

    code: int | None  # of the job's own; None: something else ended it, or nobody saw it
    reason: str  # a clause about the pod
    tail: tuple[str, ...] = ()  # the last lines that the container wrote, if the kubelet kept them


def gone(what: str) -> PodEnd:
    """The end of a pod or a Job that is not there any more."""
    return PodEnd(None, f"{what} is gone")


def end_of(pod: k8s.V1Pod, container: str) -> PodEnd:
    """The end of a container, by its pod's status; one that still runs has none."""
    name, status = pod.metadata.name, pod.status
    terminated = _terminated(pod, container)
    if status is not None and status.reason:  # Evicted, NodeLost, Shutdown, DeadlineExceeded, ...
        message = f": {status.message}" if status.message else ""
        return PodEnd(None, f"pod {name} was ended ({status.reason}{message})")
    if terminated is None:
        phase = status.phase if status is not None else "Unknown"
        return PodEnd(None, f"pod {name} is {phase} and its container has not ended")
    if terminated.exit_code in OWN_CODES:
        tail = tuple((terminated.message or "").splitlines())
        return PodEnd(terminated.exit_code, f"pod {name} ended", tail)
    reason = terminated.reason or "Error"  # OOMKilled, ContainerCannotRun, ...
    return PodEnd(None, f"pod {name}'s container ended with {terminated.exit_code} ({reason})")


def end_of_job(job: k8s.V1Job, pods: list[k8s.V1Pod], container: str) -> PodEnd:
    """The end of a Job. Why it failed, its pods know best, as long as they are kept."""
    name = job.metadata.name
    conditions = (job.status.conditions if job.status is not None else None) or []
    for condition in conditions:
        if condition.status != "True":
            continue
        if condition.type == "Complete":
            return PodEnd(EXIT_COMPLETE, f"Job {name} is complete")
        if condition.type == "Failed":
            ends = [end_of(pod, container) for pod in pods]
            worst = min(ends, key=lambda end: _GRAVITY.index(end.code), default=PodEnd(None, ""))
            told = f": {worst.reason}" if worst.reason else ""
            reason = f"Job {name} has failed ({condition.reason}{told})"
            # Workers that succeeded do not make good what the Job failed of.
            code = None if worst.code == EXIT_COMPLETE else worst.code
            return PodEnd(code, reason, worst.tail)
    return PodEnd(None, f"Job {name} has not ended")


def is_committed_since(store: "Store", shard: int | None, since: datetime) -> bool:
    """Whether the job, or the shard, was finished at `since` or later.

    An output may be an earlier run's: only the job itself can tell that it is this job's, and a job
    that was ended from outside may never have looked.
    """
    from vlmflow.job.committed import read_progress, read_report

    report = read_report(store)
    if report is not None and datetime.fromisoformat(report["finished_at"]) >= since:
        return True
    if shard is None:
        return False
    attempt = read_progress(store, shard)
    return (
        attempt is not None
        and attempt["status"] == "complete"
        and datetime.fromisoformat(attempt["updated_at"]) >= since
    )


def _terminated(pod: k8s.V1Pod, container: str) -> k8s.V1ContainerStateTerminated | None:
    statuses = (pod.status.container_statuses if pod.status is not None else None) or []
    for status in statuses:
        if status.name == container:
            return status.state.terminated
    return None
