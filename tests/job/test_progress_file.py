"""`progress.json` says how far a job is and how it ended, whoever did what of it."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.job.attempts import attempt
from tests.job.jobs import make_model, records, run_job, write_manifest
from vlmflow.job.errors import EngineDiedError, SpecError, TooManyFailuresError
from vlmflow.job.generations import Generation
from vlmflow.job.ordinals import OrdinalSet
from vlmflow.job.plan import Plan, SetAside, cut
from vlmflow.job.progress_file import STATUSES, read_attempts, summarise, write_progress
from vlmflow.job.record import Failure
from vlmflow.job.run import Assignment
from vlmflow.job.store import StoreOpener

NOW = datetime(2026, 1, 1, tzinfo=UTC)


pytestmark = pytest.mark.usefixtures("fake_engine")


def plan(num_records: int = 30, num_shards: int = 3, aside: dict[int, str] | None = None) -> Plan:
    failure = Failure("manifest", "x", "x")
    set_aside = {n: SetAside(n, n + 1, None, kind, failure) for n, kind in (aside or {}).items()}
    return Plan("", "", 0, "native", num_records, set_aside, {}, cut(num_records, num_shards))


def asking_all(of: Plan, number: int = 0) -> Generation:
    asked = OrdinalSet.full(of.num_records)
    for ordinal in of.set_aside:
        asked.discard(ordinal)
    return Generation(number, asked)


def at(shard: int, status: str, done: int, *, age: float = 1.0, **more: Any) -> dict[str, Any]:
    updated_at = (NOW - timedelta(seconds=age)).isoformat()
    return attempt(0, 1, shard=shard, status=status, done=done, updated_at=updated_at, **more)


def summary(attempts: list[dict[str, Any]], of: Plan | None = None, **more: Any) -> dict[str, Any]:
    of = of or plan()
    result = summarise(attempts, of, asking_all(of), now=NOW, **more)
    assert result["status"] in STATUSES
    return result


def progress_of(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "out/m/progress.json").read_text())
    return content


def test_before_the_first_attempt_what_was_set_aside_is_done_already():
    of = plan(aside={0: "failed", 29: "skipped"})
    told = summary([], of, status="starting")
    assert (told["status"], told["done"], told["failed"], told["records"]) == ("starting", 2, 1, 30)
    assert (told["shards"], told["workers"], told["eta_seconds"]) == (3, 0, None)


def test_shard_that_is_set_aside_as_a_whole_is_done():
    of = plan(4, 2, aside={0: "failed", 1: "failed"})
    told = summary([at(1, "complete", 2)], of)
    assert (told["done"], told["status"], told["shards"], told["shards_done"]) == (
        4,
        "finishing",
        1,
        1,
    )


def test_rates_of_workers_add_up_and_say_when_it_will_be_done():
    told = summary(
        [
            at(0, "running", 4, records_per_second=1.5),
            at(1, "running", 2, records_per_second=0.5, failed_in_all=2),
        ]
    )
    assert (told["status"], told["workers"], told["done"], told["failed"]) == ("running", 2, 6, 2)
    assert (told["records_per_second"], told["eta_seconds"]) == (2.0, 12.0)


def test_of_a_shard_the_latest_attempt_counts():
    told = summary([at(0, "interrupted", 4), at(0, "complete", 10)])
    assert (told["done"], told["status"], told["shards_done"]) == (10, "waiting", 1)


@pytest.mark.parametrize(
    ("attempts", "own", "status"),
    [
        ([], None, "waiting"),
        ([at(0, "complete", 10)], None, "waiting"),
        ([at(0, "complete", 10), at(1, "interrupted", 3)], None, "interrupted"),
        ([at(0, "failed", 1), at(1, "interrupted", 3)], None, "failed"),
        ([at(0, "running", 1, age=61)], None, "interrupted"),
        ([at(0, "running", 1, age=59)], None, "running"),
        ([at(0, "interrupted", 1)], "starting", "starting"),
        ([at(0, "running", 1)], "interrupted", "running"),
        ([at(n, "complete", 10) for n in range(3)], None, "finishing"),
        ([at(n, "complete", 10) for n in range(3)], "starting", "finishing"),
    ],
)
def test_status_is_that_of_all_workers_together(attempts, own, status):
    assert summary(attempts, status=own)["status"] == status


def test_attempts_of_other_generations_do_not_count():
    of = plan()
    again = Generation(1, OrdinalSet(30))
    again.asked.add_ranges([[3, 5]])
    first = [at(n, "complete", 10) for n in range(3)]
    told = summarise(first, of, again, status="starting", now=NOW)
    assert (told["records"], told["done"], told["status"]) == (len(again.asked), 0, "starting")


def test_job_that_succeeded_is_complete(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(20), {"id": "r3", "prompt": "x"}])
    run_job(tmp_path, manifest, tmp_path / "out", num_shards=3)
    told = progress_of(tmp_path)
    assert (told["status"], told["done"], told["records"]) == ("complete", 21, 21)
    assert (told["shards"], told["shards_done"], told["workers"]) == (3, 3, 0)
    run_job(tmp_path, manifest, tmp_path / "out", num_shards=3)
    assert progress_of(tmp_path) == told, "a look at a finished job changes nothing"


@pytest.mark.parametrize(("rate", "status"), [(0.0, "failed"), (0.5, "complete")])
def test_worker_that_comes_by_when_all_is_over_does_not_reopen_the_job(tmp_path, rate, status):
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(3), {"id": "x", "prompt": "refuse"}])
    with suppress(TooManyFailuresError):
        run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": rate})
    store = StoreOpener().open(f"{tmp_path}/out/m")
    there = Plan.from_dict(json.loads(store.read("_work/plan.json")))
    told = write_progress(store, there, asking_all(there))
    assert told["status"] == status == progress_of(tmp_path)["status"]


def test_shard_done_alone_leaves_the_job_waiting(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", records(20))
    run_job(tmp_path, manifest, tmp_path / "out", Assignment(shard=1), num_shards=2)
    told = progress_of(tmp_path)
    assert (told["status"], told["done"], told["shards_done"]) == ("waiting", 10, 1)


def test_job_with_too_many_failures_is_failed_until_it_is_mended(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(3), {"id": "x", "prompt": "refuse"}])
    with pytest.raises(TooManyFailuresError):
        run_job(tmp_path, manifest, tmp_path / "out")
    assert progress_of(tmp_path)["status"] == "failed"
    run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 0.5})
    assert progress_of(tmp_path)["status"] == "complete"


def test_second_generation_counts_what_it_asks(tmp_path):
    manifest = write_manifest(
        tmp_path / "m.jsonl", [*records(20), {"id": "x", "prompt": "refuse"}, "no JSON"]
    )
    run_job(tmp_path, manifest, tmp_path / "out")
    run_job(tmp_path, manifest, tmp_path / "out", Assignment(rerun_failed=True))
    told = progress_of(tmp_path)
    assert (told["generation"], told["records"], told["done"], told["failed"]) == (1, 1, 1, 1)
    assert told["status"] == "complete"


def test_job_whose_model_is_refused_has_failed(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", ["no JSON", *records(5)])
    with pytest.raises(SpecError):
        run_job(tmp_path, manifest, tmp_path / "out", model=str(make_model(tmp_path / "broken")))
    told = progress_of(tmp_path)
    assert (told["status"], told["done"], told["failed"]) == ("failed", 1, 1)


def test_job_whose_engine_cannot_be_kept_alive_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmflow.job.loop._MAX_CRASHES", 0)
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(5), {"id": "x", "prompt": "die"}])
    with pytest.raises(EngineDiedError):
        run_job(tmp_path, manifest, tmp_path / "out")
    assert progress_of(tmp_path)["status"] == "failed"
    [attempt] = read_attempts(StoreOpener().open(f"{tmp_path}/out/m"))
    assert attempt["status"] == "failed"
