"""`VLMManifestSensor`: waits until a manifest is there."""

from collections.abc import Collection
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException

from vlmflow.airflow.manifest_watch import ManifestWatch
from vlmflow.airflow.operators.connected import ConnectedOperator
from vlmflow.airflow.operators.seconds import check_seconds
from vlmflow.job.given import given
from vlmflow.job.spec import Dialect
from vlmflow_engine.errors import VlmflowError

if TYPE_CHECKING:
    from airflow.sdk import Context


class VLMManifestSensor(ConnectedOperator, BaseSensorOperator):
    """Wait for a manifest, and until whoever writes it is done.

    :param manifest: s3:// or a path; with `dialect="prefix"` a prefix below which something lies.
    :param dialect: of the manifest, as the job's.
    :param settle_seconds: it must have stayed the same for so long. An object of S3 appears whole,
        so 0 will do there; a file, or a prefix that is being filled, wants more.
    :param endpoint_url: of an S3 store other than AWS; else the connection's.
    :param deferrable: wait in the triggerer, without a worker's slot.

    Returns {"manifest": ..., "etag": ...}. `poke_interval`, `timeout`, `mode` and `soft_fail` are
    those of every sensor.
    """

    template_fields: Collection[str] = (
        *ConnectedOperator.template_fields,
        "manifest",
        "dialect",
        "endpoint_url",
    )
    ui_color = "#e7dcf5"

    def __init__(
        self,
        *,
        manifest: str,
        dialect: str = "auto",
        settle_seconds: float = 0.0,
        endpoint_url: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        settle_seconds = check_seconds("settle_seconds", settle_seconds, is_zero_allowed=True)
        if settle_seconds > 0 and self.reschedule and not deferrable:
            raise ValueError(
                f"settle_seconds={settle_seconds:g} needs mode='poke' or deferrable=True: with "
                "mode='reschedule' each look is a process of its own and remembers nothing"
            )
        self.manifest = manifest
        self.dialect = dialect
        self.settle_seconds = settle_seconds
        self.endpoint_url = endpoint_url
        self.deferrable = deferrable

    @cached_property
    def _watch(self) -> ManifestWatch:
        return ManifestWatch(*self._asked(), self.settle_seconds)

    def poke(self, context: "Context") -> PokeReturnValue:
        """Look once."""
        manifest, _ = self._asked()
        try:
            etag = self._watch.look(self.job_hook.opener(self._endpoint))
        except VlmflowError as error:
            raise AirflowFailException(str(error)) from None
        if etag is None:
            self.log.info("not yet: %s", self._watch.reason)
        found = {"manifest": manifest, "etag": etag}
        return PokeReturnValue(is_done=etag is not None, xcom_value=found)

    def execute(self, context: "Context") -> Any:
        """Wait here, or in the triggerer."""
        if not self.deferrable:
            return super().execute(context)
        found = self.poke(context)
        if found:
            return found.xcom_value
        from vlmflow.airflow.triggers.manifest import ManifestTrigger

        manifest, dialect = self._asked()
        self.defer(
            trigger=ManifestTrigger(
                manifest=manifest,
                dialect=dialect,
                endpoint_url=self._endpoint,
                aws_conn_id=self.job_hook.aws_conn_id,
                settle_seconds=self.settle_seconds,
                poll_interval=self.poke_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> dict[str, Any]:
        """Return what the trigger has found."""
        if event["status"] != "ready":
            raise AirflowFailException(event["message"])
        return {"manifest": event["manifest"], "etag": event["etag"]}

    def _asked(self) -> tuple[str, str]:
        """Manifest and dialect, as the templates rendered. Raises AirflowFailException.

        A sensor for what can never be would wait until its timeout.
        """
        manifest, dialect = given(self.manifest), given(self.dialect) or "auto"
        if not isinstance(manifest, str):
            raise AirflowFailException(
                f"manifest must be s3:// or a path, got {self.manifest!r}; give one, or see what "
                "its template was rendered to"
            )
        if dialect not in get_args(Dialect):
            known = ", ".join(get_args(Dialect))
            raise AirflowFailException(f"there is no dialect {dialect!r}; there are {known}")
        return manifest, dialect

    @property
    def _endpoint(self) -> str | None:
        return given(self.endpoint_url) or self.job_hook.settings.endpoint_url
