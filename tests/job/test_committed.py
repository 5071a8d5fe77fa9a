"""What those that look on are told of an output, and what they are not made to believe."""

import json

import pytest

from tests.job.jobs import records, run_job, write_manifest
from vlmflow.job.committed import (
    read_progress,
    read_report,
    read_results_digest,
    read_sealed_shard,
    read_success,
)
from vlmflow.job.errors import CountsError, TooManyFailuresError
from vlmflow.job.run import Assignment
from vlmflow.job.store import StoreOpener
from vlmflow.job.tracked.pointer import results_pointer

pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def place(tmp_path):
    """A manifest with a bad line and a double in its second half, and where its job will be."""
    lines = [
        *records(8),
        {"id": "r8", "prompt": "refuse"},
        "not json",
        *records(1),
        *records(12)[9:],
    ]
    return write_manifest(tmp_path / "m.jsonl", lines), str(tmp_path / "out")


def shard(tmp_path, place, number: int, **more):
    manifest, output = place
    return run_job(
        tmp_path, manifest, output, Assignment(shard=number), num_shards=2,
        limits={"max_failure_rate": 0.5}, **more,
    )  # fmt: skip


def test_a_job_is_followed_from_nothing_to_its_success(tmp_path, place):
    store = StoreOpener().open(f"{place[1]}/m")
    assert read_report(store) is read_success(store) is read_sealed_shard(store, 0) is None
    assert read_progress(store) is read_results_digest(store) is None

    shard(tmp_path, place, 0)
    first = read_sealed_shard(store, 0)
    assert first.counts() == {"records": 7, "succeeded": 7, "failed": 0, "skipped": 0}
    assert read_sealed_shard(store, 1) is read_success(store) is None
    assert read_progress(store, 0)["status"] == "complete"
    assert read_progress(store, 1) is None

    report = shard(tmp_path, place, 1)
    second = read_sealed_shard(store, 1)
    assert second.counts() == {"records": 7, "succeeded": 4, "failed": 2, "skipped": 1}
    assert (second.number, second.num_shards) == (1, 2)
    assert read_sealed_shard(store, 2) is None
    assert read_success(store) == report
    both = [first.counts(), second.counts()]
    for name in ("records", "succeeded", "failed", "skipped"):
        assert sum(counts[name] for counts in both) == report["counts"][name]
    assert read_results_digest(store) == results_pointer(store, report)["sha256"]


def test_of_a_generation_a_shard_tells_what_was_asked_again(tmp_path, place):
    shard(tmp_path, place, 0)
    shard(tmp_path, place, 1)
    manifest, output = place
    again = Assignment(rerun_failed=True)
    run_job(tmp_path, manifest, output, again, num_shards=2, limits={"max_failure_rate": 0.5})
    store = StoreOpener().open(f"{output}/m")
    assert read_sealed_shard(store, 0).num_records == 7  # nothing of it was asked again
    assert read_sealed_shard(store, 1).counts() == {
        "records": 1, "succeeded": 0, "failed": 1, "skipped": 0,
    }  # fmt: skip
    assert read_success(store)["generation"] == 1


def test_a_failed_job_has_a_report_and_no_success(tmp_path, place):
    manifest, output = place
    with pytest.raises(TooManyFailuresError):
        run_job(tmp_path, manifest, output, limits={"max_failure_rate": 0})
    store = StoreOpener().open(f"{output}/m")
    assert read_report(store)["counts"]["failed"] == 2
    assert read_success(store) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("counts", "succeeded"), 10),
        (("counts", "records"), 13),
        (("manifest", "records"), 15),
        (("failures", "prompt_too_long", "count"), 2),
    ],
)
def test_a_report_that_does_not_add_up_is_no_report(tmp_path, place, path, value):
    shard(tmp_path, place, 0)
    shard(tmp_path, place, 1)
    store = StoreOpener().open(f"{place[1]}/m")
    report = json.loads(store.read("report.json"))
    within = report
    for step in path[:-1]:
        within = within[step]
    assert within[path[-1]] != value
    within[path[-1]] = value
    store.write("report.json", json.dumps(report).encode())
    with pytest.raises(CountsError):
        read_success(store)
