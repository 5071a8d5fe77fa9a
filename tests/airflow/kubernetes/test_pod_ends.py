"""How a pod can end, and what the task comes to: the committed report decides."""

import asyncio
import json
import threading
import time

import psutil
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client.exceptions import ApiException

from tests.airflow.kubernetes.kit import Kit
from tests.airflow.kubernetes.test_pod import BOTH_WAYS, pod_task

SLOW = pytest.mark.parametrize("kit", [0.1], indirect=True)
# What differs little from the other way, and takes seconds, is left to the full tests.
MOSTLY_WAITING = pytest.mark.parametrize(
    "deferrable",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["waiting", "deferred"],
)
ALL = [f"r{n}" for n in range(15)]


def slow_task(kit: Kit, **arguments):
    # With so short a grace a stop falls between two records, and not after the last.
    return pod_task(kit, kit.job(num_records=len(ALL), grace_seconds=0.2), **arguments)


def is_at_work(kit: Kit) -> str | None:
    """The pod that has committed something, and is not done."""
    if not 2 <= kit.num_asked() < 10:
        return None
    return next(iter(kit.cluster.pod_names("Running")), None)


def meanwhile(kit: Kit, what) -> threading.Thread:
    """Do something to the pod once it is at work."""

    def wait_and_do() -> None:
        deadline = time.monotonic() + 20
        while not (name := is_at_work(kit)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        what(name)

    thread = threading.Thread(target=wait_and_do)
    thread.start()
    return thread


def fails_then_goes_on(kit: Kit, task, what, match: str) -> None:
    """The try in which something happens may be tried again; the next one ends the job exactly."""
    thread = meanwhile(kit, what)
    with pytest.raises(AirflowException, match=match) as caught:
        task.run()
    thread.join()
    assert not isinstance(caught.value, AirflowFailException)
    done = kit.num_asked()
    task.run()
    assert kit.results() == ALL
    assert task.xcoms["return_value"]["counts"]["succeeded"] == len(ALL)
    # What was committed is not asked again: at most what was in flight is.
    assert kit.num_asked() - done < len(ALL)


@SLOW
@MOSTLY_WAITING
def test_an_evicted_pod_is_a_failure_that_a_retry_mends(kit, deferrable):
    task = slow_task(kit, deferrable=deferrable)
    fails_then_goes_on(kit, task, kit.cluster.evict, r"was ended \(Evicted: The node was low")


@SLOW
@MOSTLY_WAITING
def test_a_vanished_pod_is_a_failure_that_a_retry_mends(kit, deferrable):
    task = slow_task(kit, deferrable=deferrable)
    fails_then_goes_on(kit, task, kit.cluster.vanish, "is gone and nothing says that its work")


@pytest.mark.slow
@SLOW
def test_a_pod_that_is_told_to_stop_commits_and_a_retry_goes_on(kit):
    # As `kubectl drain` does: SIGTERM, and the object is gone when the process is.
    task = slow_task(kit, on_finish_action="keep_pod")
    fails_then_goes_on(
        kit, task, lambda name: kit.cluster.delete_pod("default", name), "goes on where it stopped"
    )


@pytest.mark.slow
@SLOW
def test_a_killed_container_is_a_failure_that_a_retry_mends(kit):
    task = slow_task(kit)
    fails_then_goes_on(
        kit, task, lambda name: kit.cluster.process_of(name).kill(), r"container ended with 137"
    )


@SLOW
def test_a_killed_task_leaves_no_process_and_a_retry_goes_on(kit):
    task = slow_task(kit)
    processes = []

    def kill(name: str) -> None:
        processes.append(psutil.Process(kit.cluster.process_of(name).pid))
        processes.extend(processes[0].children(recursive=True))
        task.operator.on_kill()

    thread = meanwhile(kit, kill)
    with pytest.raises(ApiException, match="NotFound"):  # whatever: the task's process ends here
        task.run()
    thread.join()
    kit.cluster.wait_for(lambda: not kit.cluster.pod_names())
    assert len(processes) >= 2 and not any(process.is_running() for process in processes)
    task.run()
    assert kit.results() == ALL


@SLOW
def test_a_task_killed_while_deferred_deletes_its_pod_with_the_jobs_grace(kit):
    task = slow_task(kit, deferrable=True)
    trigger = next(task.steps())
    name = kit.cluster.wait_for(lambda: is_at_work(kit))
    process = psutil.Process(kit.cluster.process_of(name).pid)
    asyncio.run(trigger.on_kill())
    kit.cluster.wait_for(lambda: not kit.cluster.pod_names())
    assert not process.is_running()
    assert trigger.termination_grace_period == 31
    task.run()
    assert kit.results() == ALL


# -- the report outlives its pod


@BOTH_WAYS
def test_a_pod_that_is_lost_after_its_work_is_a_success(kit, deferrable):
    """The process lingers, its report is committed; then the node goes."""
    linger = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); time.sleep(60)"
    program = [*kit.programs["vlmflow"]]
    task = pod_task(kit, cmds=[program[0], "-c", linger, *program], deferrable=deferrable)

    def lose() -> None:
        kit.wait_for_file("_SUCCESS.json")
        (kit.cluster.vanish if deferrable else kit.cluster.evict)(kit.cluster.pod_names()[0])

    thread = threading.Thread(target=lose)
    thread.start()
    task.run()
    thread.join()
    assert task.xcoms["return_value"]["counts"]["succeeded"] == 6


def test_a_pod_collected_before_the_task_looks_again_is_judged_by_its_report(kit):
    """What the provider takes for a success, it here is one: the report is there."""
    task = pod_task(kit, deferrable=True)
    for _ in task.steps():
        name = kit.cluster.wait_for(lambda: kit.cluster.pod_names("Succeeded"))[0]
        kit.cluster.vanish(name)
    assert task.xcoms["return_value"]["counts"]["succeeded"] == 6


def test_an_earlier_runs_report_does_not_make_an_evicted_pod_a_success(kit):
    pod_task(kit).run()
    kit.cluster.pending_seconds = 60
    task = pod_task(kit)
    kit.cluster.created.clear()
    thread = threading.Thread(
        target=lambda: kit.cluster.evict(kit.cluster.wait_for(kit.cluster.pod_names)[0])
    )
    thread.start()
    with pytest.raises(AirflowException, match="nothing says that its work is done"):
        task.run()
    thread.join()


@MOSTLY_WAITING
def test_exit_code_0_without_a_report_is_a_failure(kit, deferrable):
    task = pod_task(kit, image="python", cmds=["python", "-c", "0"], deferrable=deferrable)
    with pytest.raises(AirflowException, match="exit code 0, but .* has no committed report"):
        task.run()
    assert "return_value" not in task.xcoms


def test_counts_that_do_not_add_up_are_a_failure(kit):
    task = pod_task(kit, deferrable=True)
    with pytest.raises(AirflowException, match="6 records were planned"):  # noqa: PT012
        for _ in task.steps():
            kit.cluster.wait_for(lambda: kit.cluster.pod_names("Succeeded"))
            path = kit.output / "report.json"
            report = json.loads(path.read_text())
            report["counts"]["succeeded"] = 5
            path.write_text(json.dumps(report))


# -- exit codes


@MOSTLY_WAITING
def test_exit_2_is_final_and_says_the_jobs_own_sentence(kit, deferrable):
    job = kit.job() | {"manifest": str(kit.folder / "nowhere.jsonl")}
    task = pod_task(kit, job, deferrable=deferrable)
    with pytest.raises(AirflowFailException, match=r"nowhere.jsonl.*\(exit code 2"):
        task.run()


def test_exit_3_is_final_and_tells_the_classes_of_failure(kit):
    task = pod_task(kit, kit.job(prompts={1: "refuse", 2: "refuse"}))
    with pytest.raises(AirflowFailException, match="prompt_too_long 2.*exit code 3"):
        task.run()


def test_exit_75_may_be_tried_again(kit):
    task = pod_task(kit, image="python", cmds=["python", "-c", "raise SystemExit(75)"])
    with pytest.raises(AirflowException, match="exit code 75.*goes on") as caught:
        task.run()
    assert not isinstance(caught.value, AirflowFailException)


def test_an_image_that_cannot_be_pulled_is_told_at_once(kit):
    with pytest.raises(AirflowException, match="Image cannot be pulled"):
        pod_task(kit, image="registry.example.org/nothing").run()


# -- a worker that died, and the next try


@SLOW
def test_the_next_try_takes_up_a_pod_that_is_alive(kit):
    task = slow_task(kit, deferrable=True)
    next(task.steps())  # the worker dies here: nobody waits for the trigger
    kit.cluster.wait_for(lambda: is_at_work(kit))
    task.run()
    assert len(kit.cluster.created) == 1 and kit.results() == ALL and kit.num_asked() == len(ALL)


@pytest.mark.parametrize("action", ["keep_pod", pytest.param("delete_pod", marks=pytest.mark.slow)])
def test_the_next_try_leaves_a_dead_pod_alone(kit, action):
    """The provider attaches to it where pods are kept, try after try."""
    kit.cluster.pending_seconds = 60
    task = pod_task(kit, deferrable=True, on_finish_action=action)
    next(task.steps())
    dead = kit.cluster.pod_names()[0]
    kit.cluster.evict(dead)
    kit.cluster.pending_seconds = 0
    task.run()
    assert len(kit.cluster.created) == 2 and len(kit.results()) == 6
    assert (dead in kit.cluster.pod_names()) == (action == "keep_pod")


@pytest.mark.parametrize("action", ["keep_pod", pytest.param("delete_pod", marks=pytest.mark.slow)])
def test_the_next_try_takes_the_work_of_a_pod_that_has_succeeded(kit, action):
    task = pod_task(kit, deferrable=True, on_finish_action=action)
    next(task.steps())
    kit.cluster.wait_for(lambda: kit.cluster.pod_names("Succeeded"))
    task.run()
    assert len(kit.cluster.created) == 1
    assert task.xcoms["return_value"]["counts"]["succeeded"] == 6


@pytest.mark.slow
@SLOW
def test_the_next_try_waits_for_a_pod_that_is_being_deleted(kit):
    task = slow_task(kit)
    other = slow_task(kit, deferrable=True)
    next(other.steps())
    first = kit.cluster.wait_for(lambda: is_at_work(kit))
    kit.cluster.delete_pod("default", first)
    task.run()
    assert len(kit.cluster.created) == 2 and kit.results() == ALL
