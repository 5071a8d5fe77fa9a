"""A manifest is waited for without a worker's slot."""

import asyncio
import json
from importlib import import_module

from airflow.sdk.serde import deserialize, serialize

from vlmflow.airflow.triggers.manifest import ManifestTrigger


def make(manifest, **more) -> ManifestTrigger:
    values = {
        "manifest": str(manifest),
        "dialect": "auto",
        "endpoint_url": None,
        "aws_conn_id": None,
        "settle_seconds": 0.0,
        "poll_interval": 0.02,
    }
    return ManifestTrigger(**(values | more))


async def first_event(trigger: ManifestTrigger) -> dict:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("no event")


def test_a_trigger_comes_back_from_the_database_as_it_went():
    trigger = make("s3://bucket/m.jsonl", aws_conn_id="aws", settle_seconds=3.5)
    path, values = trigger.serialize()
    module, _, name = path.rpartition(".")
    made = getattr(import_module(module), name)(**deserialize(serialize(values)))
    assert made.serialize() == (path, values)


def test_it_fires_when_the_manifest_comes(tmp_path):
    manifest = tmp_path / "m.jsonl"

    async def write_later() -> dict:
        event = asyncio.create_task(first_event(make(manifest)))
        await asyncio.sleep(0.2)
        assert not event.done()
        manifest.write_text("{}")
        return await asyncio.wait_for(event, 10)

    event = asyncio.run(write_later())
    assert (event["status"], event["manifest"]) == ("ready", str(manifest))
    assert json.dumps(event)


def test_what_can_be_no_manifest_is_an_error_at_once():
    event = asyncio.run(asyncio.wait_for(first_event(make("ftp://host/m.jsonl")), 10))
    assert event["status"] == "error"
    assert "ftp" in event["message"]
