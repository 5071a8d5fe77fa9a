"""Our engine behind common.ai's `@task.llm_batch`: model_id "vlmflow:MODEL" runs a job of ours.

Its registry loads this module when such a model is asked for, and only if that provider is
installed. Of a connection (type `vlmflow`) it hands over the host and the password alone, so the
host says all: where batches are put, and as query `endpoint_url` of another S3 store than AWS and
`python`, the interpreter with the engine. S3's credentials are those of boto3's own chain, and
MLflow is told if MLFLOW_TRACKING_URI is set.

A batch is a job of ours, run by a detached process on the worker's machine: what
`VLMBatchInferenceOperator` says of `deferrable` holds here too.
"""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs

from airflow.providers.common.ai.batch.base import (
    BatchAdapter,
    BatchState,
    ExtractedOutput,
    RawResultItem,
    SubmitResult,
)
from airflow.providers.common.ai.exceptions import LLMBatchInputError, LLMBatchLimitExceededError

from vlmflow.airflow.hooks.vlmflow import CONN_TYPE, VLMFlowHook
from vlmflow.airflow.process import DetachedProcess
from vlmflow.job.errors import EXIT_FAILURES

if TYPE_CHECKING:
    from airflow.providers.common.ai.batch.base import BatchRequest
    from airflow.providers.common.ai.batch.output_schema import OutputSpec

    from vlmflow.job.store import Store

_GRACE_SECONDS = 40.0
_SILENT_SECONDS = 600.0  # without a sign of life, a job on another machine counts as lost
_PARAMETERS = ("endpoint_url", "python")


class VLMFlowBatchAdapter(BatchAdapter):
    """A batch is a job; its id is the job's name, made of the task's key and the input's digest."""

    name: ClassVar[str] = "vlmflow"
    conn_types: ClassVar[frozenset[str]] = frozenset({CONN_TYPE})
    max_requests: ClassVar[int] = 50_000
    max_payload_bytes: ClassVar[int] = 200_000_000
    allows_per_request_model: ClassVar[bool] = False

    def __init__(
        self, *, api_key: str | None = None, base_url: str | None = None, client: Any | None = None
    ) -> None:
        """`base_url` is the connection's host; `api_key` and `client` are not used."""
        super().__init__(client=client)
        place, _, query = (base_url or "").partition("?")
        given = {name: values[-1] for name, values in parse_qs(query).items()}
        unknown = sorted(given.keys() - set(_PARAMETERS))
        if not place or unknown:
            raise LLMBatchInputError(
                "the host of a vlmflow connection must say where batches are put, such as "
                "s3://bucket/batches?python=/opt/vlmflow/bin/python; it may have the parameters "
                f"{' and '.join(_PARAMETERS)}; got {place!r} with {unknown}"
            )
        self._place = place.rstrip("/")
        self._endpoint_url = given.get("endpoint_url")
        self._python = given.get("python", sys.executable)
        self._opener = VLMFlowHook(None).opener(self._endpoint_url)

    def validate_requests(
        self,
        requests: list["BatchRequest"],
        *,
        model: str,
        output_spec: "OutputSpec",
        idempotency_key: str,
        **kwargs: Any,
    ) -> None:
        """Raises a LLMBatchInputError for too many requests, too large ones, or another model."""
        self.check_custom_id_length(idempotency_key, len(requests))
        if len(requests) > self.max_requests:
            raise LLMBatchLimitExceededError(
                f"a batch has at most {self.max_requests} requests, got {len(requests)}; split the "
                "input with .expand(), or run VLMBatchInferenceOperator over a manifest"
            )
        lines = self._lines(requests, model, idempotency_key, output_spec, **kwargs)
        size = sum(len(line) for line in lines)
        if size > self.max_payload_bytes:
            raise LLMBatchLimitExceededError(
                f"a batch has at most {self.max_payload_bytes} bytes, got {size}; split the input "
                "with .expand()"
            )

    def submit(
        self,
        requests: list["BatchRequest"],
        *,
        model: str,
        idempotency_key: str,
        input_fingerprint: str,
        output_spec: "OutputSpec",
        **kwargs: Any,
    ) -> SubmitResult:
        """Write the manifest, start the job, and note who runs it."""
        from vlmflow.airflow.operators.command import digest_of
        from vlmflow.job.cache_folder import cache_folder
        from vlmflow.job.spec_arguments import make_spec

        batch_id = _batch_id(idempotency_key, input_fingerprint)
        lines = self._lines(requests, model, idempotency_key, output_spec, **kwargs)
        store = self._opener.open(self._place)
        store.write(f"_manifests/{batch_id}.jsonl", b"".join(lines))
        spec = make_spec(
            {
                "manifest": f"{store.uri}/_manifests/{batch_id}.jsonl",
                "model": model,
                "output": store.uri,
                "name": batch_id,
                "endpoint_url": self._endpoint_url,
                # Which requests failed is told one by one; how many may is the caller's affair.
                "limits": {"max_failure_rate": 1.0},
                # Without an address MLflow would make a folder where the worker happens to stand.
                "tracking": {"enabled": "MLFLOW_TRACKING_URI" in os.environ},
            }
        )
        command, given = (
            [self._python, "-m", "vlmflow", "run", "--spec", "-"],
            spec.canonical_json(),
        )
        folder = cache_folder("airflow") / f"batch-{batch_id}"
        process = DetachedProcess.find(folder)
        if process is None:
            process = DetachedProcess.start(
                folder,
                command,
                environment=VLMFlowHook(None).environment(os.environ),
                given=given,
                grace_seconds=_GRACE_SECONDS,
                digest=digest_of(command, given),
            )
        note = {"process": process.as_dict(), "submitted_at": datetime.now(UTC).isoformat()}
        store.delete(_cancelled_key(batch_id))
        store.write(_note_key(batch_id), json.dumps(note).encode())
        return SubmitResult(batch_id=batch_id, provider_input_ref=spec.manifest)

    def get_batch(self, batch_id: str) -> BatchState:
        """Completed once the report is committed; until then what its process says."""
        from vlmflow.job.committed import read_progress, read_report
        from vlmflow.job.job_file import read_json

        store = self._opener.open(self._place)
        job = self._job(batch_id)
        report = read_report(job)
        if report is not None:
            counts = report["counts"]
            failed = counts["records"] - counts["succeeded"]
            told = {
                "succeeded": counts["succeeded"],
                "errored": failed,
                "expired": 0,
                "cancelled": 0,
            }
            return BatchState(status="completed", counts=told, error_message=None)
        progress = read_progress(job)
        note = read_json(store, _note_key(batch_id))
        if note is None:
            return BatchState(status="failed", counts=None, error_message=f"no batch {batch_id}")
        reason = _why_it_ended(note, progress)
        if reason is None:
            return BatchState(status="in_progress", counts=None, error_message=None)
        if read_json(store, _cancelled_key(batch_id)) is not None:
            return BatchState(status="cancelled", counts=None, error_message=None)
        return BatchState(status="failed", counts=None, error_message=reason)

    def cancel_batch(self, batch_id: str) -> None:
        """Tell the job to stop, if it runs on this machine. What is committed stays."""
        from vlmflow.job.job_file import read_json

        store = self._opener.open(self._place)
        store.write(_cancelled_key(batch_id), b"{}")
        note = read_json(store, _note_key(batch_id))
        if note is not None:
            DetachedProcess.of(note["process"]).terminate()

    def iter_results(self, batch_id: str) -> Iterator[RawResultItem]:
        """The lines of results and failures. Raises ObjectMissingError for a batch that is none."""
        from vlmflow.job import layout
        from vlmflow.job.finished import read_lines

        job = self._job(batch_id)
        job.stat(layout.REPORT)
        return map(_item, read_lines(job))

    def build_output_directive(self, spec: "OutputSpec") -> dict[str, Any]:
        """A grammar that the engine follows."""
        if not spec.is_structured:
            return {}
        schema = {"name": spec.schema_name, "schema": spec.json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def extract_output(self, raw: RawResultItem, spec: "OutputSpec") -> ExtractedOutput:
        """The answer's text, or the JSON that it is."""
        kind = "json_text" if spec.is_structured else "text"
        return ExtractedOutput(kind=kind, text=raw.raw["text"])

    def find_orphaned_batch(
        self, idempotency_key: str, input_fingerprint: str, not_before: str
    ) -> str | None:
        """The batch of this very key and input, if it was submitted since then."""
        from vlmflow.job.job_file import read_json

        batch_id = _batch_id(idempotency_key, input_fingerprint)
        note = read_json(self._opener.open(self._place), _note_key(batch_id))
        if note is None:
            return None
        submitted = datetime.fromisoformat(note["submitted_at"])
        since = datetime.fromisoformat(not_before) if not_before else submitted
        return batch_id if submitted >= since else None

    def _job(self, batch_id: str) -> "Store":
        return self._opener.open(f"{self._place}/{batch_id}")

    def _lines(
        self,
        requests: list["BatchRequest"],
        model: str,
        key: str,
        output_spec: "OutputSpec",
        *,
        system_prompt: str = "",
        max_tokens: int | None = None,
        request_params: dict[str, Any] | None = None,
        **_: Any,
    ) -> Iterator[bytes]:
        """Records of the native manifest."""
        directive = self.build_output_directive(output_spec)
        for index, request in enumerate(requests):
            asked = self.resolve_request_model(
                request.get("model"), default_bare_model=model, request_index=index
            )
            if asked != model:
                raise LLMBatchInputError(
                    f"request {index} asks model {asked!r}; a batch has one, here {model!r}"
                )
            messages = [{"role": "user", "content": request["prompt"]}]
            if system := request.get("system_prompt") or system_prompt:
                messages.insert(0, {"role": "system", "content": system})
            generation = {**(request_params or {}), **(request.get("params") or {})}
            if limit := request.get("max_tokens") or max_tokens:
                generation["max_new_tokens"] = limit
            record = {
                "id": f"{key}-{index}",
                "messages": messages,
                "generation": generation | directive,
            }
            yield json.dumps(record).encode() + b"\n"


def _item(line: dict[str, Any]) -> RawResultItem:
    usage, error = line.get("usage") or {}, line.get("error")
    return RawResultItem(
        custom_id=line["id"],
        index=int(line["id"].rpartition("-")[2]),
        provider_status="success" if error is None else "errored",
        model=None,
        usage={
            "input_tokens": usage.get("prompt_tokens", 0),
            "output_tokens": usage.get("completion_tokens", 0),
        },
        finish_reason=line.get("finish_reason"),
        error=None if error is None else {"type": error["class"], "message": error["message"]},
        raw=line,
    )


def _why_it_ended(note: dict[str, Any], progress: dict[str, Any] | None) -> str | None:
    """None while the job may still be at it."""
    process = DetachedProcess.of(note["process"])
    if process.is_here:
        if process.is_running:
            return None
        ended = process.ended()
        # Of code 3 the report is written before it; what lacks one was ended early.
        kind = "too many requests failed: " if ended.code == EXIT_FAILURES else ""
        return f"{kind}{ended.reason} (exit code {ended.code})"
    sign = (progress or {}).get("updated_at") or note["submitted_at"]
    silence = (datetime.now(UTC) - datetime.fromisoformat(sign)).total_seconds()
    if silence <= _SILENT_SECONDS:
        return None
    return f"no sign of life from {process.described['host']} for {silence:.0f} s"


def _batch_id(idempotency_key: str, input_fingerprint: str) -> str:
    return f"{idempotency_key}-{input_fingerprint[:16]}"


def _note_key(batch_id: str) -> str:
    return f"_batches/{batch_id}.json"


def _cancelled_key(batch_id: str) -> str:
    return f"_batches/{batch_id}-cancelled.json"
