"""What failed is asked again when somebody says so; the rest is not."""

import json

import pytest

from tests.job.jobs import read_lines, records, run_job
from tests.job.jobs import write_manifest as write
from vlmflow.job.errors import TooManyFailuresError
from vlmflow.job.run import Assignment

RERUN = Assignment(rerun_failed=True)


pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def manifest(tmp_path):
    """20 good records, two of missing images, a bad line and a duplicate."""
    missing = [{"id": f"i{n}", "prompt": "x", "images": [f"{n}.png"]} for n in range(2)]
    return write(tmp_path / "m.jsonl", [*records(20), *missing, "bad", records(1)[0]])


def failed_ids(tmp_path) -> list:
    return [line["id"] for line in read_lines(f"{tmp_path}/out/m", "failures")]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_failures_are_asked_again_and_the_view_takes_the_newest_success(
    tmp_path, manifest, fake_engine, num_shards
):
    first = run_job(
        tmp_path, manifest, tmp_path / "out", num_shards=num_shards,
        limits={"max_failure_rate": 0.5},
    )  # fmt: skip
    assert failed_ids(tmp_path) == ["i0", "i1", None, "r0"]
    assert first["generations"] == [{"generation": 0, "asked": 22, "succeeded": 20, "failed": 2}]
    fake_engine.unlink()
    (tmp_path / "1.png").write_bytes(b"here by now")
    second = run_job(tmp_path, manifest, tmp_path / "out", RERUN, limits={"max_failure_rate": 0.5})
    assert fake_engine.read_text().split() == ["21"]
    assert failed_ids(tmp_path) == ["i0", None, "r0"]
    results = [line["id"] for line in read_lines(f"{tmp_path}/out/m", "results")]
    assert results == [*(f"r{n}" for n in range(20)), "i1"]
    assert second["generations"] == [
        {"generation": 0, "asked": 22, "succeeded": 20, "failed": 2},
        {"generation": 1, "asked": 2, "succeeded": 1, "failed": 1},
    ]
    counts = second["counts"]
    assert (counts["records"], counts["succeeded"]) == (24, 21)
    assert (counts["failed"], counts["skipped"]) == (2, 1)
    success = json.loads((tmp_path / "out/m/_SUCCESS.json").read_text())
    assert (success["generation"], success["counts"]) == (1, counts)


def test_a_job_that_failed_can_be_repaired_by_its_rerun(tmp_path, manifest):
    with pytest.raises(TooManyFailuresError):
        run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 0.05})
    assert not (tmp_path / "out/m/_SUCCESS.json").exists()
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(b"here by now")
    report = run_job(tmp_path, manifest, tmp_path / "out", RERUN, limits={"max_failure_rate": 0.05})
    assert report["counts"]["failed"] == 1  # the bad line, which nobody can ask
    assert (tmp_path / "out/m/_SUCCESS.json").is_file()


def test_the_finished_rerun_is_complete_for_a_plain_run(tmp_path, manifest, fake_engine):
    limits = {"max_failure_rate": 0.5}
    run_job(tmp_path, manifest, tmp_path / "out", limits=limits)
    report = run_job(tmp_path, manifest, tmp_path / "out", RERUN, limits=limits)
    asked = fake_engine.read_text()
    assert run_job(tmp_path, manifest, tmp_path / "out", limits=limits) == report
    assert fake_engine.read_text() == asked


def test_without_failures_there_is_nothing_to_rerun(tmp_path, capsys):
    manifest = write(tmp_path / "m.jsonl", records(3))
    report = run_job(tmp_path, manifest, tmp_path / "out")
    assert run_job(tmp_path, manifest, tmp_path / "out", RERUN) == report
    assert "no record failed; there is nothing to ask again" in capsys.readouterr().err
    assert not (tmp_path / "out/m/_work/generations").exists()


def test_rerun_of_an_unfinished_job_goes_on_with_it(tmp_path, manifest, capsys):
    report = run_job(tmp_path, manifest, tmp_path / "out", RERUN, limits={"max_failure_rate": 0.5})
    assert report["generation"] == 0
    assert "not finished yet; going on with it" in capsys.readouterr().err


def test_fork_takes_the_next_name_and_is_resumed_by_the_same_command(tmp_path, fake_engine, capsys):
    manifest = write(tmp_path / "m.jsonl", records(3))
    run_job(tmp_path, manifest, tmp_path / "out")
    fork = Assignment(fork=True)
    report = run_job(tmp_path, manifest, tmp_path / "out", fork, seed=1)
    assert report["job"]["name"] == "m-2"
    assert "seed was 0 and is 1" in capsys.readouterr().err
    assert run_job(tmp_path, manifest, tmp_path / "out", fork, seed=2)["job"]["name"] == "m-3"
    asked = fake_engine.read_text()
    assert run_job(tmp_path, manifest, tmp_path / "out", fork, seed=1) == report
    assert run_job(tmp_path, manifest, tmp_path / "out", fork)["job"]["name"] == "m"
    assert fake_engine.read_text() == asked
