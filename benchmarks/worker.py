"""One engine, one workload, one process: prints a line of JSON with seconds and peak memory.

python -m benchmarks.worker vlmflow|transformers CHECKPOINT REQUESTS.json [BATCH_SIZE]
"""

import json
import resource
import sys
import time
from pathlib import Path

from benchmarks.workload import BenchmarkRequest
from vlmflow_engine import GenerationConfig


def main() -> None:
    engine, checkpoint, path, *rest = sys.argv[1:]
    requests = [BenchmarkRequest(**item) for item in json.loads(Path(path).read_text())]
    if engine == "vlmflow":
        seconds, num_tokens, details = run_vlmflow(checkpoint, requests)
    else:
        seconds, num_tokens, details = run_transformers(checkpoint, requests, int(rest[0]))
    result = {
        "seconds": seconds,
        "output_tokens": num_tokens,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **details,
    }
    print(json.dumps(result))


def run_vlmflow(
    checkpoint: str, requests: list[BenchmarkRequest]
) -> tuple[float, int, dict[str, object]]:
    """All requests in one call; the engine batches them as it likes."""
    from vlmflow_engine import Pipeline, PytorchEngineConfig

    config = PytorchEngineConfig(dtype="bfloat16", device_type="cpu")
    with Pipeline(checkpoint, backend_config=config) as pipeline:
        pipeline([(r.text, r.image) for r in _warm_up(requests)], _configs(_warm_up(requests)))
        start = time.perf_counter()
        responses = pipeline([(r.text, r.image) for r in requests], _configs(requests))
        seconds = time.perf_counter() - start
        stats = pipeline.stats
    assert isinstance(responses, list)
    assert [r.generate_token_len for r in responses] == [r.num_new_tokens for r in requests]
    details: dict[str, object] = {
        "steps": stats.num_steps,
        "busy_seconds": stats.busy_seconds,
        "prompt_tokens": sum(r.input_token_len for r in responses),
    }
    return seconds, sum(r.num_new_tokens for r in requests), details


def _configs(requests: list[BenchmarkRequest]) -> list[GenerationConfig]:
    return [GenerationConfig(max_new_tokens=r.num_new_tokens, ignore_eos=True) for r in requests]


def run_transformers(
    checkpoint: str, requests: list[BenchmarkRequest], batch_size: int
) -> tuple[float, int, dict[str, object]]:
    """Static batches of requests of similar length; each runs to the longest of its own."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()

    def run(batch: list[BenchmarkRequest]) -> None:
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.open(r.image).convert("RGB")},
                        {"type": "text", "text": r.text},
                    ],
                }
            ]
            for r in batch
        ]
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(torch.bfloat16)
        longest = max(r.num_new_tokens for r in batch)
        model.generate(**inputs, max_new_tokens=longest, min_new_tokens=longest, do_sample=False)

    ordered = sorted(requests, key=lambda r: r.num_new_tokens)
    run(_warm_up(requests))
    start = time.perf_counter()
    for index in range(0, len(ordered), batch_size):
        run(ordered[index : index + batch_size])
    seconds = time.perf_counter() - start
    return seconds, sum(r.num_new_tokens for r in requests), {"batch_size": batch_size}


def _warm_up(requests: list[BenchmarkRequest]) -> list[BenchmarkRequest]:
    return [BenchmarkRequest(r.image, r.text, 4) for r in requests[:2]]


if __name__ == "__main__":
    main()
