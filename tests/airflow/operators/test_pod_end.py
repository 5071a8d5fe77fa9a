"""What a pod's status says of the job's end: its own exit codes, and all that is not its own."""

import pytest
from kubernetes.client import models as k8s

from vlmflow.airflow.operators.pod_end import end_of, end_of_job


def make_pod(code=None, *, phase="Failed", reason=None, why=None, message=None):
    state = k8s.V1ContainerState(running=k8s.V1ContainerStateRunning())
    if code is not None:
        ended = k8s.V1ContainerStateTerminated(exit_code=code, reason=why, message=message)
        state = k8s.V1ContainerState(terminated=ended)
    status = k8s.V1ContainerStatus(
        name="base", image="i", image_id="", ready=False, restart_count=0, state=state
    )
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="p"),
        status=k8s.V1PodStatus(phase=phase, reason=reason, container_statuses=[status]),
    )


@pytest.mark.parametrize("code", [0, 2, 3, 4, 75])
def test_the_jobs_own_codes_are_known(code):
    assert end_of(make_pod(code), "base").code == code


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (make_pod(137, why="OOMKilled"), "ended with 137 (OOMKilled)"),
        (make_pod(143), "ended with 143 (Error)"),
        (make_pod(1), "ended with 1 (Error)"),
        (make_pod(75, reason="Evicted"), "was ended (Evicted)"),
        (make_pod(0, reason="DeadlineExceeded"), "was ended (DeadlineExceeded)"),
        (make_pod(phase="Running"), "is Running and its container has not ended"),
    ],
)
def test_what_ended_from_outside_is_not(pod, reason):
    end = end_of(pod, "base")
    assert end.code is None and reason in end.reason


def test_the_containers_last_words_are_kept():
    end = end_of(make_pod(2, message="loading\nvlmflow: no manifest\n"), "base")
    assert end.tail == ("loading", "vlmflow: no manifest")


def failed_job(*codes):
    condition = k8s.V1JobCondition(type="Failed", status="True", reason="BackoffLimitExceeded")
    job = k8s.V1Job(
        metadata=k8s.V1ObjectMeta(name="j"), status=k8s.V1JobStatus(conditions=[condition])
    )
    return end_of_job(job, [make_pod(code) for code in codes], "base")


def test_a_failed_job_is_as_bad_as_its_worst_pod():
    assert failed_job(75, 2, 137).code == 2
    assert failed_job(75, 3, 0).code == 3
    assert failed_job(75, 137).code is None
    assert failed_job(75, 75).code == 75
    assert failed_job(0).code is None and failed_job().code is None
    assert "BackoffLimitExceeded: pod p's container ended with 137" in failed_job(137).reason


def test_a_condition_that_is_false_is_none():
    condition = k8s.V1JobCondition(type="Complete", status="False")
    job = k8s.V1Job(
        metadata=k8s.V1ObjectMeta(name="j"), status=k8s.V1JobStatus(conditions=[condition])
    )
    assert end_of_job(job, [], "base").code is None
