"""What every operator of ours has: its two connections."""

from collections.abc import Collection
from functools import cached_property
from typing import Any

from airflow.sdk import BaseOperator

from vlmflow.airflow.hooks.vlmflow import VLMFlowHook
from vlmflow.job.given import given


class ConnectedOperator(BaseOperator):
    """Knows the connections, and reads them where the task runs.

    :param vlmflow_conn_id: a connection of type `vlmflow`, for what the task does not say itself:
        S3 endpoint, MLflow, image, interpreter. None: there is none.
    :param aws_conn_id: a connection of type `aws`; None: boto3's own chain finds credentials.
    """

    template_fields: Collection[str] = ("vlmflow_conn_id", "aws_conn_id")

    def __init__(
        self,
        *,
        vlmflow_conn_id: str | None = None,
        aws_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vlmflow_conn_id = vlmflow_conn_id
        self.aws_conn_id = aws_conn_id

    @cached_property
    def job_hook(self) -> VLMFlowHook:
        return VLMFlowHook(given(self.vlmflow_conn_id), given(self.aws_conn_id))
