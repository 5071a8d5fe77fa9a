"""Opens stores in a triggerer, whose event loop must wait for nothing."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from vlmflow.airflow.hooks.vlmflow import credentials_of

if TYPE_CHECKING:
    from vlmflow.job.store import StoreOpener


async def open_later(
    aws_conn_id: str | None, endpoint_url: str | None
) -> "Callable[[], StoreOpener]":
    """What a thread calls to open stores, with the credentials of an AWS connection.

    Made anew for each look: the keys of a role run out, and looks are seldom.
    """
    connection = await BaseHook.aget_connection(aws_conn_id) if aws_conn_id is not None else None

    def open_now() -> "StoreOpener":
        from vlmflow.job.store import StoreOpener

        credentials = credentials_of(connection) if connection is not None else None
        return StoreOpener(endpoint_url, max_connections=2, credentials=credentials)

    return open_now
