"""The sensor: there, and no longer growing."""

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred

from vlmflow.airflow.manifest_watch import ManifestWatch
from vlmflow.airflow.sensors.manifest import VLMManifestSensor
from vlmflow.job.store import StoreOpener


def make(manifest, **more) -> VLMManifestSensor:
    return VLMManifestSensor(task_id="wait", manifest=str(manifest), **more)


def test_a_manifest_that_is_there_is_returned(tmp_path, context):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("{}")
    found = make(manifest).execute(context)
    assert found["manifest"] == str(manifest)
    assert found["etag"]


def test_one_that_does_not_come_is_a_time_out(tmp_path, context):
    with pytest.raises(AirflowSensorTimeout):
        make(tmp_path / "m.jsonl", poke_interval=0.01, timeout=0.05).execute(context)


def test_a_prefix_counts_when_something_lies_below_it(tmp_path, context):
    folder = tmp_path / "images"
    folder.mkdir()
    sensor = make(f"{folder}/", dialect="prefix")
    assert not sensor.poke(context)
    (folder / "a.png").write_bytes(b"x")
    assert sensor.poke(context)


def test_it_waits_in_the_triggerer(tmp_path, context):
    sensor = make(tmp_path / "m.jsonl", deferrable=True, poke_interval=7, timeout=60)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context)
    assert deferred.value.trigger.poll_interval == 7
    assert deferred.value.timeout.total_seconds() == 60
    event = {"status": "ready", "manifest": "m", "etag": "e"}
    assert sensor.execute_complete(context, event) == {"manifest": "m", "etag": "e"}
    with pytest.raises(AirflowFailException, match="why"):
        sensor.execute_complete(context, {"status": "error", "message": "why"})


def test_one_that_grows_is_waited_for(tmp_path):
    manifest, now = tmp_path / "m.jsonl", [0.0]
    watch = ManifestWatch(str(manifest), "auto", 10, clock=lambda: now[0])
    opener = StoreOpener()
    assert watch.look(opener) is None
    for now[0], text, is_ready in (
        (1.0, "a", False),
        (9.0, "ab", False),  # it grew: the ten seconds begin again
        (18.0, "ab", False),
        (19.0, "ab", True),
    ):
        if not manifest.exists() or manifest.read_text() != text:
            manifest.write_text(text)
        assert (watch.look(opener) is not None) is is_ready, (now, watch.reason)


def test_rescheduled_looks_remember_nothing(tmp_path):
    with pytest.raises(ValueError, match="settle_seconds=5 needs mode='poke'"):
        make(tmp_path / "m.jsonl", settle_seconds=5, mode="reschedule")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"manifest": "None"}, "manifest must be s3:// or a path, got 'None'; give one, or see"),
        ({"manifest": 5}, "manifest must be s3:// or a path, got 5"),
        ({"dialect": "jsonl"}, "there is no dialect 'jsonl'; there are auto, native, openai"),
    ],
)
@pytest.mark.parametrize("deferrable", [False, True])
def test_what_can_never_be_is_not_waited_for(context, more, message, deferrable):
    values = {"manifest": "m.jsonl", "deferrable": deferrable, "poke_interval": 0.01} | more
    with pytest.raises(AirflowFailException, match=message):
        VLMManifestSensor(task_id="wait", timeout=5, **values).execute(context)
