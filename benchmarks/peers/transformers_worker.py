"""transformers' turn: static batches of requests of similar length.

Each batch runs to the longest answer of its own. Sorting by length is what makes that cheap.
"""

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from benchmarks.request import BenchmarkRequest, WorkDone, WorkOrder


def work(order: WorkOrder) -> WorkDone:
    """The setting is the size of a batch."""
    torch.set_num_threads(order.num_threads)
    batch_size: int = order.setting["batch_size"]
    start = time.perf_counter()
    processor = AutoProcessor.from_pretrained(order.model)
    model = LlavaForConditionalGeneration.from_pretrained(order.model, dtype=torch.bfloat16).eval()
    _generate(model, processor, order.warm_up)
    loaded = time.perf_counter()
    by_length = sorted(
        range(len(order.requests)), key=lambda place: order.requests[place].num_new_tokens
    )
    num_output_tokens = [0] * len(order.requests)
    num_prompt_tokens = 0
    for first in range(0, len(by_length), batch_size):
        places = by_length[first : first + batch_size]
        batch = [order.requests[place] for place in places]
        num_generated, num_prompted = _generate(model, processor, batch)
        num_prompt_tokens += num_prompted
        for place, request in zip(places, batch, strict=True):
            # What a shorter answer got beyond its length is thrown away.
            num_output_tokens[place] = min(num_generated, request.num_new_tokens)
    return WorkDone(
        seconds=time.perf_counter() - loaded,
        load_seconds=loaded - start,
        num_output_tokens=num_output_tokens,
        num_prompt_tokens=num_prompt_tokens,
        versions={"transformers": version("transformers"), "torch": version("torch")},
        details={},
    )


def _generate(model: Any, processor: Any, batch: Sequence[BenchmarkRequest]) -> tuple[int, int]:
    """Tokens that each row got, and those of all prompts."""
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": Image.open(request.image).convert("RGB")},
                    {"type": "text", "text": request.text},
                ],
            }
        ]
        for request in batch
    ]
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    ).to(torch.bfloat16)
    longest = max(request.num_new_tokens for request in batch)
    with torch.inference_mode():
        ids = model.generate(
            **inputs, max_new_tokens=longest, min_new_tokens=longest, do_sample=False
        )
    return ids.shape[1] - inputs["input_ids"].shape[1], int(inputs["attention_mask"].sum())
