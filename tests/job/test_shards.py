"""A manifest cut into shards: by number, by free workers, merged; in this process."""

import json

import pytest

from tests.job.jobs import committed_ordinals, make_spec, read_lines, records, run_job
from tests.job.jobs import write_manifest as write
from vlmflow.job.errors import ClaimedError, SpecError
from vlmflow.job.loop import StopSignal
from vlmflow.job.merge import merge_job
from vlmflow.job.plan import cut
from vlmflow.job.planning import plan_job
from vlmflow.job.progress import LineDisplay
from vlmflow.job.run import Assignment

pytestmark = pytest.mark.usefixtures("fake_engine")


def merge(tmp_path) -> dict:
    values = {"output": str(tmp_path / "out"), "name": "m"}
    return merge_job(values, display=LineDisplay(), stop=StopSignal())


@pytest.mark.parametrize("num_records, num_shards", [(1, 1), (10, 3), (3, 5), (100, 7), (8, 8)])
def test_shards_hold_every_record_once_and_differ_by_one_at_most(num_records, num_shards):
    shards = cut(num_records, num_shards)
    assert [n for s in shards for n in range(s.first_ordinal, s.end)] == list(range(num_records))
    assert [shard.number for shard in shards] == list(range(num_shards))
    sizes = [shard.num_records for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_shards_run_one_by_one_give_what_one_run_gives(tmp_path, fake_engine):
    lines = [*records(30), "no JSON", {"id": "r3", "prompt": "again"}, *records(33)[31:]]
    manifest = write(tmp_path / "m.jsonl", lines)
    whole = run_job(tmp_path, manifest, tmp_path / "whole")
    fake_engine.unlink()
    reports = [
        run_job(tmp_path, manifest, tmp_path / "out", Assignment(shard=n), num_shards=4)
        for n in (2, 0, 3, 1)
    ]
    assert reports[:3] == [None, None, None]
    assert reports[3]["counts"] == whole["counts"]
    assert reports[3]["failures"] == whole["failures"]
    for kind in ("results", "failures"):
        assert read_lines(f"{tmp_path}/out/m", kind) == read_lines(f"{tmp_path}/whole/m", kind)
    asked = sorted(int(line) for line in fake_engine.read_text().split())
    assert asked == [n for n in range(34) if n not in (30, 31)]
    assert (tmp_path / "out/m/_SUCCESS.json").is_file()
    progress = json.loads((tmp_path / "out/m/progress.json").read_text())
    assert (progress["done"], progress["records"], progress["failed"]) == (34, 34, 1)


def test_a_shard_alone_writes_no_report_and_merge_names_the_open_ones(tmp_path):
    manifest = write(tmp_path / "m.jsonl", records(20))
    run_job(tmp_path, manifest, tmp_path / "out", Assignment(shard=1), num_shards=3)
    assert not (tmp_path / "out/m/report.json").exists()
    with pytest.raises(ClaimedError, match="2 of 3 shards of .*/out/m are not done: 0, 2"):
        merge(tmp_path)
    # A run without --shard does what is left, and finishes.
    report = run_job(tmp_path, manifest, tmp_path / "out")
    assert report["counts"]["succeeded"] == 20
    assert merge(tmp_path) == report


def test_merge_writes_what_a_worker_killed_at_the_end_left_undone(tmp_path):
    manifest = write(tmp_path / "m.jsonl", records(20))
    report = run_job(tmp_path, manifest, tmp_path / "out", num_shards=2)
    output = tmp_path / "out/m"
    results = (output / "results/00000.jsonl").read_bytes()
    for name in ("report.json", "_SUCCESS.json", "results/00000.jsonl"):
        (output / name).unlink()
    again = merge(tmp_path)
    assert again | {"finished_at": report["finished_at"]} == report
    assert (output / "results/00000.jsonl").read_bytes() == results
    assert (output / "_SUCCESS.json").is_file()


def test_merging_where_no_job_is_is_one_sentence(tmp_path):
    with pytest.raises(SpecError, match="out/m holds no job; give --output and --name"):
        merge(tmp_path)


def test_more_shards_than_records_leave_some_empty(tmp_path):
    manifest = write(tmp_path / "m.jsonl", records(2))
    assert run_job(tmp_path, manifest, tmp_path / "out", Assignment(shard=4), num_shards=5) is None
    report = run_job(tmp_path, manifest, tmp_path / "out")
    assert report["counts"]["succeeded"] == 2
    assert committed_ordinals(f"{tmp_path}/out/m") == {0: 1, 1: 1}


def test_another_number_of_shards_than_planned_is_refused(tmp_path):
    manifest = write(tmp_path / "m.jsonl", records(20))
    spec = make_spec(tmp_path, manifest, tmp_path / "out", num_shards=4)
    planned = plan_job(spec)
    assert [shard["shard"] for shard in planned["shards"]] == ["0/4", "1/4", "2/4", "3/4"]
    assert planned["num_records"] == 20
    assert plan_job(spec) == planned
    with pytest.raises(SpecError, match="planned in 4 shards already, not 2"):
        plan_job(spec.model_copy(update={"num_shards": 2}))
    with pytest.raises(SpecError, match=r"planned in 4 shards, not in 3; say --shard I/4"):
        run_job(tmp_path, manifest, tmp_path / "out", Assignment(shard=0), num_shards=3)


def test_a_worker_does_all_shards_that_are_free(tmp_path):
    manifest = write(tmp_path / "m.jsonl", records(50))
    run_job(tmp_path, manifest, tmp_path / "out", Assignment(shard=2), num_shards=5)
    report = run_job(tmp_path, manifest, tmp_path / "out", Assignment(is_worker=True))
    assert report["counts"]["succeeded"] == 50
    assert committed_ordinals(f"{tmp_path}/out/m") == dict.fromkeys(range(50), 1)
    assert len(report["attempts"]) == 5
    # Every shard's engine counts are its own, though one engine did four of them.
    assert [attempt["engine"]["num_steps"] for attempt in report["attempts"]] == [10] * 5
