"""Each second of a worker is counted once, under what it waited for."""

import pytest

from tests.job.conftest import Clock
from tests.job.jobs import FAKE_ENGINE, records, run_job, write_manifest
from vlmflow.job.activity import ActivityClock
from vlmflow.job.engine_process import COMMAND_VARIABLE


def test_seconds_go_to_what_was_entered_last(clock: Clock) -> None:
    activity = ActivityClock()
    clock.now += 100
    assert set(activity.as_dict().values()) == {0.0}
    for name, seconds in (("other", 1), ("engine", 5), ("images", 2), ("engine", 3)):
        activity.enter(name)
        clock.now += seconds
    assert activity.as_dict() == {
        "engine": 8, "images": 2, "store": 0, "restart": 0, "other": 1
    }  # fmt: skip
    clock.now += 1
    assert activity.as_dict()["engine"] == 9, "what goes on is counted too"


@pytest.mark.parametrize(
    ("prompt", "seconds", "activity"), [("x", "0.3", "engine"), ("die", "0", "restart")]
)
def test_loop_tells_what_it_waits_for(tmp_path, monkeypatch, prompt, seconds, activity):
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", seconds)
    lines = [{"id": "x", "prompt": prompt}, *(records(1) if prompt == "die" else [])]
    manifest = write_manifest(tmp_path / "m.jsonl", lines)
    limits = {"max_failure_rate": 0.5}
    report = run_job(tmp_path, manifest, tmp_path / "out", limits=limits)
    [attempt] = report["attempts"]
    waited = attempt["activity_seconds"]
    assert max(waited, key=waited.get) == activity
    assert sum(waited.values()) == pytest.approx(attempt["seconds"], abs=0.1)


def test_slow_images_are_waited_for_as_images(tmp_path, monkeypatch):
    import time

    from vlmflow.job.media import MediaFetcher

    fetch = MediaFetcher.fetch

    def slow(self, record):
        time.sleep(0.5)
        return fetch(self, record)

    monkeypatch.setattr(MediaFetcher, "fetch", slow)
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.png").write_bytes(b"x")
    lines = [{"id": "x", "prompt": "x", "images": ["a.png"]}]
    report = run_job(tmp_path, write_manifest(tmp_path / "m.jsonl", lines), tmp_path / "out")
    assert report["time"]["parts"]["images"] > 0.3
