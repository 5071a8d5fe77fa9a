"""`ManifestTrigger`: fires when a manifest is there and has stopped changing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from vlmflow.airflow.manifest_watch import ManifestWatch
from vlmflow.airflow.triggers.stored import open_later
from vlmflow_engine.errors import VlmflowError


class ManifestTrigger(BaseTrigger):
    """Looks every `poll_interval` seconds; fires once.

    The event is {"status": "ready", "manifest": ..., "etag": ...}, or {"status": "error",
    "message": ...} for a manifest that can never be one, such as a URI without a bucket.
    """

    def __init__(
        self,
        *,
        manifest: str,
        dialect: str,
        endpoint_url: str | None,
        aws_conn_id: str | None,
        settle_seconds: float,
        poll_interval: float,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.dialect = dialect
        self.endpoint_url = endpoint_url
        self.aws_conn_id = aws_conn_id
        self.settle_seconds = settle_seconds
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Names and places only: a trigger is stored in Airflow's database, secrets are not."""
        return (
            "vlmflow.airflow.triggers.manifest.ManifestTrigger",
            {
                "manifest": self.manifest,
                "dialect": self.dialect,
                "endpoint_url": self.endpoint_url,
                "aws_conn_id": self.aws_conn_id,
                "settle_seconds": self.settle_seconds,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is ready."""
        watch = ManifestWatch(self.manifest, self.dialect, self.settle_seconds)
        told = ""
        while True:
            make_opener = await open_later(self.aws_conn_id, self.endpoint_url)

            def look(make_opener: Any = make_opener) -> str | None:
                return watch.look(make_opener())

            try:
                etag = await asyncio.to_thread(look)
            except VlmflowError as error:
                yield TriggerEvent({"status": "error", "message": str(error)})
                return
            if etag is not None:
                event = {"status": "ready", "manifest": self.manifest, "etag": etag}
                yield TriggerEvent(event)
                return
            if watch.reason != told:
                told = watch.reason
                self.log.info("not yet: %s", told)
            await asyncio.sleep(self.poll_interval)
