"""One record's way as an MLflow trace, from times that were measured before.

MLflow's tracing decorators stamp spans while code runs, into one global destination. Here the work
is done long since, by another process; so spans are made of plain data, for one run's experiment.
"""

import json
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from mlflow.entities import Span, TraceData, TraceInfo, TraceLocation, TraceState  # noqa: TID253
from mlflow.store.artifact.artifact_repository_registry import (  # noqa: TID253
    get_artifact_repository,
)
from mlflow.tracing.attachments import Attachment  # noqa: TID253
from mlflow.tracing.client import TracingClient  # noqa: TID253
from mlflow.tracing.utils.artifact_utils import get_artifact_uri_for_trace  # noqa: TID253

from vlmflow.tracking.mlflow_run import MlflowRun

_MAX_PREVIEW_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class TimedSpan:
    """A stretch of time. The first span of a trace is the root; `parent` is an index."""

    name: str
    kind: str  # MLflow's span types: CHAIN, LLM, TOOL, PARSER, EMBEDDING
    start: float  # seconds since 1970
    end: float
    parent: int | None = 0
    inputs: Any = None
    outputs: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TimedTrace:
    """All of one record. A run has one trace of a key."""

    key: str
    spans: list[TimedSpan]
    error: str | None  # what it failed with
    tokens: tuple[int, int]  # of the prompt and of the answer
    picture: bytes | None  # PNG or JPEG, shown with the root's inputs


def log_timed_traces(run: MlflowRun, traces: list[TimedTrace], model_id: str | None) -> None:
    """Log traces of a run; those that it has already are left as they are."""
    client = TracingClient(run.tracking_uri)
    known = {
        trace.info.trace_id
        for trace in run.client.search_traces(
            locations=[run.experiment_id], run_id=run.run_id, max_results=500, include_spans=False
        )
    }
    for trace in traces:
        number = sha256(f"{run.run_id} {trace.key}".encode()).digest()[:16]
        trace_id = f"tr-{number.hex()}"
        if trace_id not in known:
            _log(client, run, trace, trace_id, number, model_id)


def _log(
    client: TracingClient,
    run: MlflowRun,
    trace: TimedTrace,
    trace_id: str,
    number: bytes,
    model_id: str | None,
) -> None:
    attachments: dict[str, Attachment] = {}
    inputs = trace.spans[0].inputs
    if trace.picture is not None:
        kind = "png" if trace.picture.startswith(b"\x89PNG") else "jpeg"
        picture = Attachment(content_type=f"image/{kind}", content_bytes=trace.picture)
        attachments[picture.id] = picture
        inputs = {**inputs, "image": picture.ref(trace_id)}
    usage = dict(zip(("input_tokens", "output_tokens"), trace.tokens, strict=True))
    usage["total_tokens"] = sum(trace.tokens)
    root = trace.spans[0]
    metadata = {
        "mlflow.sourceRun": run.run_id,
        "mlflow.trace.tokenUsage": json.dumps(usage),
        "mlflow.traceInputs": json.dumps(inputs)[:250],
        "mlflow.traceOutputs": json.dumps(root.outputs)[:250],
    }
    if model_id is not None:
        metadata["mlflow.modelId"] = model_id
    info = client.start_trace(
        TraceInfo(
            trace_id=trace_id,
            trace_location=TraceLocation.from_experiment_id(run.experiment_id),
            request_time=round(root.start * 1000),
            execution_duration=round((root.end - root.start) * 1000),
            state=TraceState.OK if trace.error is None else TraceState.ERROR,
            request_preview=json.dumps(inputs, ensure_ascii=False)[:_MAX_PREVIEW_CHARACTERS],
            response_preview=json.dumps(root.outputs, ensure_ascii=False)[:_MAX_PREVIEW_CHARACTERS],
            client_request_id=trace.key,
            trace_metadata=metadata,
            tags={"mlflow.traceName": root.name},
        )
    )
    spans = [
        _span(trace, index, trace_id, number, inputs if index == 0 else None, usage)
        for index in range(len(trace.spans))
    ]
    try:
        client.log_spans(run.experiment_id, spans)
    except NotImplementedError:  # a server or store that keeps spans as files
        _artifacts_of(info, run).upload_trace_data(json.dumps(TraceData(spans).to_dict()))
    for picture_id, picture in attachments.items():
        _artifacts_of(info, run).upload_attachment(picture_id, picture.content_bytes)


def _artifacts_of(info: TraceInfo, run: MlflowRun) -> Any:
    """Where a trace's files go. MLflow's own client takes the process's global server for it."""
    uri = get_artifact_uri_for_trace(info)
    return get_artifact_repository(uri, tracking_uri=run.tracking_uri)


def _span(
    trace: TimedTrace,
    index: int,
    trace_id: str,
    number: bytes,
    root_inputs: Any,
    usage: dict[str, int],
) -> Span:
    item = trace.spans[index]
    attributes = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": item.kind,
        **item.attributes,
    }
    inputs = root_inputs if index == 0 else item.inputs
    if inputs is not None:
        attributes["mlflow.spanInputs"] = inputs
    if item.outputs is not None:
        attributes["mlflow.spanOutputs"] = item.outputs
    if index == 0:
        attributes["mlflow.chat.tokenUsage"] = usage
    is_failed = index == 0 and trace.error is not None
    parent = None if index == 0 else _span_id(number, item.parent or 0)
    return Span.from_dict(
        {
            "trace_id": b64encode(number).decode(),
            "span_id": _span_id(number, index),
            "parent_span_id": parent,
            "name": item.name,
            "start_time_unix_nano": round(item.start * 1e9),
            "end_time_unix_nano": round(item.end * 1e9),
            "status": {
                "code": "STATUS_CODE_ERROR" if is_failed else "STATUS_CODE_OK",
                "message": trace.error or "" if is_failed else "",
            },
            "attributes": {k: json.dumps(v, ensure_ascii=False) for k, v in attributes.items()},
            "events": [],
            "links": [],
        }
    )


def _span_id(number: bytes, index: int) -> str:
    return b64encode(sha256(number + bytes([index])).digest()[:8]).decode()
