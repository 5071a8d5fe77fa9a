"""One engine in a process of its own: what `benchmarks.gpu.e2e` starts. Writes JSON.

    python -m benchmarks.gpu.worker vlmflow|transformers PLAN.json RESULT.json

The plan's `started` is the time at which the process was started: the first token's time counts
from there, so that imports are in it.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.breakdown import break_down, spans_of
from benchmarks.gpu.steady import check_answers, steady_decode, warm_up_profiler
from benchmarks.gpu.workload import GpuRequest, load_requests

Plan = dict[str, Any]


def main() -> None:
    engine, plan_path, result_path = sys.argv[1:]
    plan = json.loads(Path(plan_path).read_text(encoding="utf-8"))
    run = {"vlmflow": run_vlmflow, "transformers": run_transformers}[engine]
    Path(result_path).write_text(json.dumps(run(plan)), encoding="utf-8")


def run_vlmflow(plan: Plan) -> dict[str, Any]:
    """First token, then each workload several times, then steady decode."""
    from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

    imported = time.time()
    config = PytorchEngineConfig(
        dtype="bfloat16",
        device_type=plan["device"],
        session_len=plan["session_len"],
        num_preprocess_workers=plan["num_workers"],
        **plan["engine"],
    )
    result: dict[str, Any] = {"workloads": {}}
    with Pipeline(plan["folder"], backend_config=config) as pipeline:
        loaded = time.time()
        first = load_requests(Path(plan["warm_up"]))
        answer = pipeline([_prompt(first[0])], GenerationConfig(max_new_tokens=1, ignore_eos=True))
        assert isinstance(answer, list)
        check_answers(answer, [1])
        started = plan["started"]
        result["start_up"] = {
            "first_token_seconds": time.time() - started,
            "import_seconds": imported - started,
            "load_seconds": loaded - imported,
        }
        if plan["steady"]:
            result["steady"] = _steady(pipeline, plan)
        _answer(pipeline, first)
        for name, series in plan["workloads"].items():
            runs = [_answer(pipeline, load_requests(Path(path))) for path in series]
            result["workloads"][name] = {"runs": runs}
        result["info"] = asdict(pipeline.info) if hasattr(pipeline, "info") else {}
    return result


def _steady(pipeline: Any, plan: Plan) -> dict[str, Any]:
    """Step time without the profiler, then how busy the device is, with it."""
    steady = plan["steady"]
    requests = load_requests(Path(steady["requests"]))
    warm_up_profiler(plan["device"])
    with steady_decode(pipeline, requests, steady["num_new_tokens"]) as decode:
        decode.wait_until_steady()
        window = decode.window(steady["num_steps"])
        events = decode.profile(plan["device"], steady["num_profiled_steps"])
    found = break_down(spans_of(events))
    return {
        "step_seconds": window.step_seconds,
        "batch_size": window.batch_size,
        "mean_context": window.mean_context,
        "num_steps": window.num_steps,
        "busy_share": None if found is None else found.busy_share,
        "seconds_by_kind": {} if found is None else found.by_kind,
    }


def _answer(pipeline: Any, requests: list[GpuRequest]) -> dict[str, Any]:
    """All requests in one call; the engine batches them as it likes."""
    from vlmflow_engine import GenerationConfig

    lengths = [request.num_new_tokens for request in requests]
    before = pipeline.stats.as_dict()
    start = time.perf_counter()
    responses = pipeline(
        [_prompt(request) for request in requests],
        [GenerationConfig(max_new_tokens=length, ignore_eos=True) for length in lengths],
    )
    seconds = time.perf_counter() - start
    check_answers(responses, lengths)
    after = pipeline.stats.as_dict()
    gauges = ("num_running", "num_waiting", "kv_usage", "max_batch_size")
    return {
        "seconds": seconds,
        "output_tokens": sum(lengths),
        "prompt_tokens": sum(response.input_token_len for response in responses),
        "stats": {name: after[name] - before[name] for name in after if name not in gauges},
    }


def _prompt(request: GpuRequest) -> tuple[str, str]:
    return request.text, request.image


def run_transformers(plan: Plan) -> dict[str, Any]:
    """First token, then each workload: its best batch size of a probe, then all requests."""
    from benchmarks.gpu.peer import Peer

    peer = Peer(Path(plan["folder"]), plan["kind"], plan["device"])
    loaded = time.time()
    first = load_requests(Path(plan["warm_up"]))
    peer.answer([GpuRequest(first[0].image, first[0].text, 1)])
    result: dict[str, Any] = {
        "start_up": {
            "first_token_seconds": time.time() - plan["started"],
            "load_seconds": loaded - plan["started"],
        },
        "image_processor": peer.image_processor,
        "workloads": {},
    }
    peer.answer(first)
    for name, series in plan["workloads"].items():
        requests = load_requests(Path(series[0]))
        result["workloads"][name] = peer.measure(
            requests, requests[: plan["num_probed"]], plan["batch_sizes"]
        )
    return result


if __name__ == "__main__":
    main()
