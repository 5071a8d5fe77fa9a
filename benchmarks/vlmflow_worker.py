"""vlmflow's turn: all requests in one call, batched as the engine likes."""

import time
from dataclasses import asdict
from importlib.metadata import version

from benchmarks.request import BenchmarkRequest, WorkDone, WorkOrder
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

_COUNTED = (
    "num_steps",
    "busy_seconds",
    "vision_seconds",
    "prefill_seconds",
    "decode_seconds",
    "preprocess_wait_seconds",
    "prefix_hit_tokens",
    "num_preemptions",
)


def work(order: WorkOrder) -> WorkDone:
    """The setting is made of fields of the engine's config; without any it is as it comes."""
    config = PytorchEngineConfig(dtype="bfloat16", device_type="cpu", **order.setting)
    start = time.perf_counter()
    with Pipeline(order.model, backend_config=config) as pipeline:
        _answer(pipeline, order.warm_up)
        loaded = time.perf_counter()
        before = pipeline.stats.as_dict()
        num_output_tokens, num_prompt_tokens = _answer(pipeline, order.requests)
        seconds = time.perf_counter() - loaded
        after = pipeline.stats.as_dict()
        info = asdict(pipeline.info)
    details = {name: after[name] - before[name] for name in _COUNTED}
    return WorkDone(
        seconds=seconds,
        load_seconds=loaded - start,
        num_output_tokens=num_output_tokens,
        num_prompt_tokens=num_prompt_tokens,
        versions={"torch": version("torch"), "attention of vlmflow": info["attention_backend"]},
        details=details | {"kv_cache_bytes": info["kv_cache_bytes"]},
    )


def _answer(
    pipeline: Pipeline, requests: "list[BenchmarkRequest] | tuple[BenchmarkRequest, ...]"
) -> tuple[list[int], int]:
    configs = [
        GenerationConfig(max_new_tokens=request.num_new_tokens, ignore_eos=True)
        for request in requests
    ]
    responses = pipeline([(request.text, request.image) for request in requests], configs)
    assert isinstance(responses, list)
    for response in responses:
        if response.error_message:
            raise SystemExit(f"a request failed: {response.error_message}")
    return (
        [response.generate_token_len for response in responses],
        sum(response.input_token_len for response in responses),
    )
