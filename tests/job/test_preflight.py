"""What is said of a job before it is run is what the run would find."""

import json
from pathlib import Path

import pytest

from tests.job.jobs import make_spec, records, run_job
from tests.job.jobs import write_manifest as write
from vlmflow.cli import main
from vlmflow.job.errors import ManifestError, SpecError
from vlmflow.job.loop import StopSignal
from vlmflow.job.preflight import check_job, failure_share
from vlmflow.job.progress import LineDisplay

pytestmark = pytest.mark.usefixtures("fake_engine")


def check(tmp_path: Path, lines: list, num_sampled: int = 0, **spec: object) -> dict:
    manifest = write(tmp_path / "m.jsonl", lines)
    return check_job(
        make_spec(tmp_path, manifest, tmp_path / "out", **spec),
        num_sampled=num_sampled,
        display=LineDisplay(),
        stop=StopSignal(),
    )


def test_lines_duplicates_and_images_are_told_with_line_and_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 50)
    lines = [
        *records(10),
        {"id": "there", "prompt": "x", "images": ["a.png", "a.png"]},
        {"id": "missing", "prompt": "x", "images": ["a.png", "b.png"]},
        "no JSON",
        {"id": "r3", "prompt": "again"},
    ]
    result = check(tmp_path, lines)
    manifest = result["manifest"]
    assert (manifest["records"], manifest["to_ask"], manifest["images"]) == (14, 12, 4)
    assert manifest["dialect"] == "native"
    assert result["bad_lines"]["count"] == 1
    assert result["bad_lines"]["examples"][0]["message"] == "line 13: not valid JSON"
    [duplicate] = result["duplicates"]["examples"]
    assert (duplicate["line"], duplicate["id"]) == (14, "r3")
    images = result["images"]
    assert (images["records"], images["records_failing"]) == (12, 1)
    assert images["classes"] == {"image_not_found": 1}
    assert images["mean_bytes"] == 50
    assert "b.png does not exist" in images["examples"][0]["message"]
    assert failure_share(result) == 2 / 14
    assert result["forecast"] is None
    assert not (tmp_path / "out").exists()


def test_a_check_reads_what_the_run_reads(tmp_path: Path) -> None:
    lines = [*records(30), {"id": "missing", "prompt": "x", "images": ["b.png"]}, "bad"]
    result = check(tmp_path, lines)
    report = run_job(tmp_path, tmp_path / "m.jsonl", tmp_path / "out")
    assert result["manifest"]["sha256"] == report["manifest"]["sha256"]
    assert failure_share(result) == report["counts"]["failed"] / report["counts"]["records"]


def test_a_sample_is_asked_and_time_and_cost_are_reckoned_from_it(
    tmp_path: Path, fake_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.02")
    result = check(tmp_path, records(500), 25, price_per_hour=36.0)
    ordinals = [int(line) for line in fake_engine.read_text().split()]
    assert len(ordinals) == len(set(ordinals)) == 25
    assert max(ordinals) > 400  # not the first ones: manifests are often sorted
    forecast = result["forecast"]
    assert (forecast["sampled"], forecast["failed"]) == (25, 0)
    assert 20 < forecast["records_per_second"] <= 50
    assert 10 <= forecast["device_seconds"] < 40
    assert forecast["cost"] == pytest.approx(forecast["device_seconds"] / 100, abs=0.01)
    assert not (tmp_path / "out").exists()
    again = fake_engine.with_name("again")
    monkeypatch.setenv("FAKE_ENGINE_LOG", str(again))
    check(tmp_path, records(500), 25)
    assert sorted(map(int, again.read_text().split())) == sorted(ordinals)


def test_of_many_records_only_some_are_looked_at(tmp_path: Path) -> None:
    lines = [{"id": f"r{n}", "prompt": "x", "images": [f"{n}.png"]} for n in range(1000)]
    for n in range(0, 1000, 2):
        (tmp_path / f"{n}.png").write_bytes(b"x")
    images = check(tmp_path, lines)["images"]
    assert images["records"] == 100
    assert 30 <= images["records_failing"] <= 70
    assert len(images["examples"]) == 20


def test_a_manifest_that_no_run_would_take_is_refused_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no records"):
        check(tmp_path, [""])
    lines = [{"id": "a", "prompt": "x", "images": ["s3://other/a.png"]}]
    with pytest.raises(SpecError, match="--allow-s3"):
        check(tmp_path, lines)


@pytest.mark.parametrize("command", [["check"], ["run", "--dry-run"]])
def test_the_command_prints_what_it_found_and_writes_nothing(
    command: list[str], tmp_path: Path, fake_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path / "m.jsonl", [*records(4), "bad"])
    options = [
        "--manifest",
        str(manifest),
        "--model",
        str(tmp_path),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*command, *options, "--max-failure-rate", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "bad lines          1" in out and "line 5: not valid JSON" in out
    assert main([*command, *options]) == 3
    assert "20.0% of the records would fail" in capsys.readouterr().err
    assert not fake_engine.exists() and not (tmp_path / "o").exists()


def test_json_is_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path / "m.jsonl", records(4))
    options = [
        "--manifest",
        str(manifest),
        "--model",
        str(tmp_path),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main(["check", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["records"] == 4


def test_a_run_says_at_its_start_that_images_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*records(8), {"id": "missing", "prompt": "x", "images": ["b.png"]}]
    manifest = write(tmp_path / "m.jsonl", lines)
    run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 0.5})
    said = capsys.readouterr().err
    assert "images of 1 of 9 records looked at cannot be had, such as: " in said
    # Before the engine was there: that is what it is good for.
    assert said.index("cannot be had") < said.index("engine: ")
