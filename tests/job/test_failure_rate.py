"""A job that is on its way to fail ends early; one that only looks so does not."""

import pytest

from tests.job.jobs import committed_ordinals, records, run_job
from tests.job.jobs import write_manifest as write
from vlmflow.job.errors import TooManyFailuresError

pytestmark = pytest.mark.usefixtures("fake_engine")


def refused(count: int) -> list[dict]:
    return [{"id": f"bad{n}", "prompt": "refuse"} for n in range(count)]


def test_a_job_of_which_half_fails_ends_after_min_records(tmp_path):
    lines = [line for pair in zip(records(1000), refused(1000), strict=True) for line in pair]
    manifest = write(tmp_path / "m.jsonl", lines)
    with pytest.raises(TooManyFailuresError, match=r"\(prompt_too_long \d+\)") as caught:
        run_job(tmp_path, manifest, tmp_path / "out")
    assert caught.value.exit_code == 3
    done = committed_ordinals(f"{tmp_path}/out/m")
    assert 100 <= len(done) < 1000
    assert not (tmp_path / "out/m/report.json").exists()
    # What is committed stays, and a higher rate goes on with it.
    report = run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 0.6})
    assert report["counts"]["failed"] == 1000
    assert committed_ordinals(f"{tmp_path}/out/m") == dict.fromkeys(range(2000), 1)


def test_fewer_records_than_min_records_end_no_job_early(tmp_path):
    manifest = write(tmp_path / "m.jsonl", [*refused(90), *records(9)])
    with pytest.raises(TooManyFailuresError, match="90 of 99 records failed"):
        run_job(tmp_path, manifest, tmp_path / "out")
    assert (tmp_path / "out/m/report.json").is_file()


def test_failures_that_are_known_before_the_first_answer_end_no_job_early(tmp_path, monkeypatch):
    # One of twelve images is missing, which is known at once; the others wait for the engine.
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.002")
    (tmp_path / "a.png").write_bytes(b"picture")
    lines = [
        {"id": f"r{n}", "prompt": "x", "images": ["none.png" if n % 12 == 0 else "a.png"]}
        for n in range(480)
    ]
    manifest = write(tmp_path / "m.jsonl", lines)
    report = run_job(tmp_path, manifest, tmp_path / "out", limits={"min_records": 20})
    assert (report["counts"]["succeeded"], report["counts"]["failed"]) == (440, 40)


def test_a_rate_of_one_ends_no_job_early(tmp_path):
    manifest = write(tmp_path / "m.jsonl", [*refused(150), *records(1)])
    report = run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 1.0})
    assert report["counts"]["failed"] == 150
