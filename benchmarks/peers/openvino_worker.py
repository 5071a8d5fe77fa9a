"""OpenVINO GenAI's turn: continuous batching over an export by optimum-intel."""

import time
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import openvino
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig
from PIL import Image

from benchmarks.request import BenchmarkRequest, WorkDone, WorkOrder

_CACHE_GIB = 3  # more than all requests of a workload fill at once


def work(order: WorkOrder) -> WorkDone:
    """The setting is made of fields of SchedulerConfig, and of the device's properties."""
    properties = {
        "INFERENCE_NUM_THREADS": order.num_threads,
        "INFERENCE_PRECISION_HINT": _best_precision(),
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": 1,
    }
    scheduler = SchedulerConfig()
    scheduler.cache_size = _CACHE_GIB
    scheduler.max_num_seqs = len(order.requests)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    for name, value in order.setting.items():
        if name.isupper():
            properties[name] = value
        else:
            setattr(scheduler, name, value)
    start = time.perf_counter()
    pipeline = ContinuousBatchingPipeline(order.model, scheduler, "CPU", properties, {}, properties)
    _answer(pipeline, order.warm_up)
    loaded = time.perf_counter()
    num_output_tokens = _answer(pipeline, order.requests)
    return WorkDone(
        seconds=time.perf_counter() - loaded,
        load_seconds=loaded - start,
        num_output_tokens=num_output_tokens,
        num_prompt_tokens=None,
        versions={name: version(name) for name in ("openvino", "openvino-genai", "optimum-intel")},
        details={"max_cache_usage_percent": float(pipeline.get_metrics().max_cache_usage)},
    )


def _answer(
    pipeline: ContinuousBatchingPipeline, requests: Sequence[BenchmarkRequest]
) -> list[int]:
    """What `generate` does, with handles of our own: it tells no counts by request.

    Returns how many tokens each request got.
    """
    handles = []
    for index, request in enumerate(requests):
        config = GenerationConfig()
        config.max_new_tokens = request.num_new_tokens
        config.ignore_eos = True
        config.do_sample = False
        with Image.open(request.image) as image:
            pixels = openvino.Tensor(np.asarray(image.convert("RGB"))[None])
        handles.append(pipeline.add_request(index, request.text, [pixels], config))
    while pipeline.has_non_finished_requests():
        pipeline.step()
    outputs = [handle.read_all()[0] for handle in handles]
    return [len(output.generated_ids) for output in outputs]


def _best_precision() -> str:
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"
