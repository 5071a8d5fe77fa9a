"""VLMBatchInferenceJobOperator: a Job that is queued, shared by workers, taken up again, killed."""

import asyncio
import threading
from datetime import timedelta

import psutil
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from tests.airflow.kubernetes.kit import IMAGE, Kit, Task
from tests.airflow.kubernetes.test_pod_ends import (
    ALL,
    MOSTLY_WAITING,
    SLOW,
    is_at_work,
    meanwhile,
)
from vlmflow.airflow.operators.kubernetes_job import VLMBatchInferenceJobOperator
from vlmflow.job.errors import SpecError


def job_task(kit: Kit, job: dict | None = None, **arguments) -> Task:
    given = {
        "task_id": "infer",
        "image": IMAGE,
        "job_poll_interval": 0.1,
        **(job or kit.job()),
        **arguments,
    }
    return Task(lambda: VLMBatchInferenceJobOperator(**given))


def slow_task(kit: Kit, **arguments) -> Task:
    return job_task(kit, kit.job(num_records=len(ALL), grace_seconds=0.2), **arguments)


def made(kit: Kit, kind: str) -> list[dict]:
    return [manifest for manifest in kit.cluster.created if manifest["kind"] == kind]


@MOSTLY_WAITING
def test_a_job_runs_and_its_summary_is_pushed(kit, deferrable):
    task = job_task(kit, deferrable=deferrable)
    task.run()
    assert kit.results() == [f"r{n}" for n in range(6)]
    assert task.xcoms["return_value"]["counts"]["succeeded"] == 6
    assert "job" not in task.xcoms  # the provider would push the whole object


@SLOW
def test_workers_share_a_job(kit):
    task = job_task(kit, kit.job(num_records=12), workers=2, num_shards=4)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not task.returned and not kit.has_file("_SUCCESS.json"):
            peak = max(peak, len(kit.cluster.pod_names("Running")))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    task.run()
    thread.join()
    assert peak == 2 and len(made(kit, "Pod")) == 2
    assert sorted(kit.results()) == sorted(f"r{n}" for n in range(12)) and kit.num_asked() == 12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"workers": 2, "shard": "0/4"}, "workers=2 share a job; with shard there is one"),
        ({"workers": 3, "num_shards": 2}, "workers is 3 and num_shards 2: each worker"),
        ({"workers": 0}, "workers must be a whole number from 1, got 0"),
    ],
)  # fmt: skip
def test_workers_that_cannot_share_are_refused(kit, arguments, sentence):
    with pytest.raises(AirflowFailException, match=sentence):
        job_task(kit, **arguments).run()
    assert kit.cluster.created == []


def test_parallelism_is_told_by_workers(kit):
    with pytest.raises(SpecError, match="parallelism is not an argument of this operator"):
        job_task(kit, parallelism=2).make()


@MOSTLY_WAITING
def test_a_job_in_a_queue_begins_when_kueue_lets_it(kit, deferrable):
    task = job_task(kit, queue_name="gpus", deferrable=deferrable)
    seen = []

    def admit() -> None:
        (name,) = kit.cluster.wait_for(lambda: [name for _, name in kit.cluster.jobs.jobs])
        seen.append((name, kit.cluster.pod_names()))
        kit.cluster.jobs.patch("default", name, {"spec": {"suspend": False}})

    thread = threading.Thread(target=admit)
    thread.start()
    task.run()
    thread.join()
    assert seen[0][1] == []
    assert task.xcoms["return_value"]["counts"]["succeeded"] == 6


@SLOW
def test_an_evicted_pod_is_replaced_by_the_job_and_not_counted(kit):
    task = slow_task(kit, backoff_limit=0)
    thread = meanwhile(kit, kit.cluster.evict)
    task.run()
    thread.join()
    assert len(made(kit, "Pod")) == 2 and len(made(kit, "Job")) == 1
    assert kit.results() == ALL


@pytest.mark.slow
@SLOW
def test_a_killed_pod_is_counted_and_the_next_try_goes_on(kit):
    task = slow_task(kit, backoff_limit=0)
    thread = meanwhile(kit, lambda name: kit.cluster.process_of(name).kill())
    with pytest.raises(
        AirflowException, match=r"BackoffLimitExceeded: .* ended with 137"
    ) as caught:
        task.run()
    thread.join()
    assert not isinstance(caught.value, AirflowFailException)
    task.run()
    assert len(made(kit, "Job")) == 2 and kit.results() == ALL


@MOSTLY_WAITING
def test_exit_3_fails_the_job_at_once_and_for_good(kit, deferrable):
    job = kit.job(prompts={1: "refuse", 2: "refuse"})
    with pytest.raises(AirflowFailException, match="prompt_too_long 2.*exit code 3"):
        job_task(kit, job, deferrable=deferrable).run()
    assert len(made(kit, "Pod")) == 1


def test_exit_2_is_final_and_says_the_jobs_own_sentence(kit):
    job = kit.job() | {"manifest": str(kit.folder / "nowhere.jsonl")}
    with pytest.raises(AirflowFailException, match=r"nowhere.jsonl.*\(exit code 2"):
        job_task(kit, job).run()
    assert len(made(kit, "Pod")) == 1


def test_a_complete_job_without_a_report_is_a_failure(kit):
    task = job_task(kit, image="python", cmds=["python", "-c", "0"])
    with pytest.raises(AirflowException, match="exit code 0, but .* has no committed report"):
        task.run()


def test_a_job_that_is_gone_is_judged_by_its_report(kit):
    task = job_task(kit, deferrable=True)
    for _ in task.steps():
        kit.wait_for_file("_SUCCESS.json")
        kit.cluster.jobs.delete("default", task.xcoms["job_name"], "Background", 0)
    assert task.xcoms["return_value"]["counts"]["succeeded"] == 6


def test_a_job_that_is_gone_without_a_report_is_a_failure(kit):
    kit.cluster.pending_seconds = 60
    task = job_task(kit, deferrable=True)
    with pytest.raises(AirflowException, match="is gone and nothing says that its work is done"):  # noqa: PT012
        for _ in task.steps():
            kit.cluster.jobs.delete("default", task.xcoms["job_name"], "Background", 0)


@SLOW
def test_the_next_try_takes_up_a_job_that_nobody_has_seen_the_end_of(kit):
    task = slow_task(kit, deferrable=True)
    next(task.steps())  # the worker dies here
    kit.cluster.wait_for(lambda: is_at_work(kit))
    task.run()
    assert len(made(kit, "Job")) == 1 and kit.results() == ALL and kit.num_asked() == len(ALL)
    task.run()  # cleared by a user: a Job of its own
    assert len(made(kit, "Job")) == 2


@SLOW
def test_a_task_killed_while_deferred_deletes_its_job(kit):
    task = slow_task(kit, deferrable=True)
    trigger = next(task.steps())
    name = kit.cluster.wait_for(lambda: is_at_work(kit))
    process = psutil.Process(kit.cluster.process_of(name).pid)
    asyncio.run(trigger.on_kill())
    kit.cluster.wait_for(lambda: not kit.cluster.pod_names() and not kit.cluster.jobs.jobs)
    assert not process.is_running()
    task.run()
    assert kit.results() == ALL


@SLOW
def test_a_killed_task_deletes_its_job_and_leaves_no_process(kit):
    task = slow_task(kit)
    processes = []

    def kill(name: str) -> None:
        processes.append(psutil.Process(kit.cluster.process_of(name).pid))
        processes.extend(processes[0].children(recursive=True))
        task.operator.on_kill()

    thread = meanwhile(kit, kill)
    with pytest.raises(AirflowException, match="is gone"):
        task.run()
    thread.join()
    assert len(processes) >= 2 and not any(process.is_running() for process in processes)
    assert not kit.cluster.jobs.jobs


def test_a_deferred_job_that_is_late_is_deleted(kit):
    kit.cluster.pending_seconds = 60
    task = job_task(kit, deferrable=True, execution_timeout=timedelta(seconds=0.5))
    with pytest.raises(AirflowException, match="was not done within execution_timeout"):
        task.run()
    assert not kit.cluster.jobs.jobs and not kit.cluster.pod_names()


def test_a_trigger_survives_its_way_to_the_triggerer(kit):
    trigger = next(job_task(kit, deferrable=True, on_kill_propagation_policy="Background").steps())
    path, arguments = trigger.serialize()
    assert path.endswith("kubernetes_job.KubernetesJobEndTrigger")
    assert type(trigger)(**arguments).serialize() == (path, arguments)
    assert arguments["propagation_policy"] == "Background"
