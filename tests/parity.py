"""Greedy answers beside transformers', token by token, and what counts as equal.

Where the reference's two likeliest tokens are less than NEAR_TIE apart, float32 rounding decides
and the order of a sum is enough to turn it. There the logits are compared instead, with the
reference's tokens forced on both, and the place is counted.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny_llava import make_caches
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig, Response
from vlmflow_engine.inputs.builder import InputBuilder, PreparedInput
from vlmflow_engine.kernels.paged_attention import SequenceSpan, plan_attention
from vlmflow_engine.models.decoder import Decoder
from vlmflow_engine.models.registry import image_format, load_model, read_config
from vlmflow_engine.request import Request
from vlmflow_engine.runner.batch import EmbeddingRows
from vlmflow_engine.runner.encoder_runner import EncoderRunner
from vlmflow_engine.runner.positions import positions_of
from vlmflow_engine.sequence import Sequence as EngineSequence
from vlmflow_engine.stats import EngineStats
from vlmflow_engine.vl.fetch import fetch_image

NEAR_TIE = 1e-3
MAX_LOGIT_ERROR = 1e-4
MAX_NEAR_TIES = 0.005  # of all tokens

_CPU = torch.device("cpu")


TEXT = "how many red shapes are there at the top left is a blue star circle what colour"
WORDS = TEXT.split()
SIZES = ((96, 96), (40, 200), (333, 100), (97, 96), (16, 16), (250, 251), (1, 1), (900, 90))


def conversations(
    count: int, sizes: Sequence[tuple[int, int]] = SIZES, *, max_images: int = 3
) -> list[list[dict[str, Any]]]:
    """No image, one, several of mixed sizes, several turns, and images that come again.

    sizes  (width, height) of the images
    """
    rng = random.Random(5)
    pixels = np.random.default_rng(5)
    images = [
        Image.fromarray(pixels.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in sizes
    ]
    made: list[list[dict[str, Any]]] = []
    for index in range(count):
        messages: list[dict[str, Any]] = []
        for turn in range(rng.choice((1, 1, 1, 2))):
            parts = [
                {"type": "image", "image": rng.choice(images)}
                for _ in range((index + turn) % (max_images + 1))
            ]
            text = " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": text}]})
            if rng.random() < 0.5:
                reply = [{"type": "text", "text": " ".join(rng.choices(WORDS, k=4))}]
                messages.append({"role": "assistant", "content": reply})
        if messages[-1]["role"] == "assistant":
            messages.pop()
        made.append(messages)
    return made


# What may change nothing, as fields of the engine's config; None: a number of the family's own.
SCHEDULES: dict[str, dict[str, Any]] = {
    "one": {"max_batch_size": 1},
    "seven": {"max_batch_size": 7},
    "all": {"max_batch_size": 64},
    "chunks": {"max_batch_size": 7, "max_prefill_token_num": 16},
    "preempted": {"max_batch_size": 64, "num_gpu_blocks": None},
    "everything-small": {
        "max_batch_size": 64,
        "num_gpu_blocks": None,
        "max_prefill_token_num": 16,
        "encoder_cache_rows": None,
    },
    "async": {"max_batch_size": 7, "async_scheduling": True},
    "async-small": {
        "max_batch_size": 64,
        "num_gpu_blocks": None,
        "max_prefill_token_num": 16,
        "encoder_cache_rows": None,
        "async_scheduling": True,
    },
    "odd-blocks": {"max_batch_size": 64, "block_size": 5, "max_prefill_token_num": 100},
}


# Every schedule with the prefix cache and without it; half of that is enough for `make test`.
CASES = [
    pytest.param(
        schedule,
        is_cached,
        id=f"{schedule}-{'cached' if is_cached else 'uncached'}",
        marks=() if (number + is_cached) % 2 else pytest.mark.slow,
    )
    for number, schedule in enumerate(SCHEDULES)
    for is_cached in (True, False)
]


@dataclass(frozen=True)
class Reference:
    """transformers' answer to one prompt."""

    messages: list[dict[str, Any]]
    input_ids: list[int]
    token_ids: list[int]  # generated, the end of sequence included
    margins: list[float]  # of each generated token, likeliest over second likeliest
    logits: Tensor  # [generated, vocab_size]


def generate_references(
    folder: Path,
    conversations: Sequence[list[dict[str, Any]]],
    max_new_tokens: int,
    *,
    processor: Any = None,
    device: str = "cpu",
) -> list[Reference]:
    """Answer conversations one by one, in float32, greedily.

    processor  transformers' of the checkpoint; None: what AutoProcessor makes of its files
    device     where the model runs
    """
    processor = processor or AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model = model.to(device).eval()
    references = []
    for messages in conversations:
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device)
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        logits = torch.cat(output.scores).cpu()
        best, second = logits.topk(2).values.unbind(-1)
        prompt = inputs["input_ids"][0].tolist()
        references.append(
            Reference(
                messages=messages,
                input_ids=prompt,
                token_ids=output.sequences[0, len(prompt) :].tolist(),
                margins=(best - second).tolist(),
                logits=logits,
            )
        )
    return references


def assert_parity(
    folder: Path,
    references: Sequence[Reference],
    responses: Sequence[Response],
    eos_token_id: int,
) -> int:
    """Compare answers with references; return the number of near-ties that turned."""
    near_ties = 0
    for reference, response in zip(references, responses, strict=True):
        assert response.error_message is None
        assert response.input_token_len == len(reference.input_ids)
        ours = list(response.token_ids)
        if response.finish_reason == "stop":
            ours.append(eos_token_id)
        place = first_difference(ours, reference.token_ids)
        if place is None:
            continue
        margin = reference.margins[place]
        assert margin < NEAR_TIE, (
            f"token {place} is {ours[place : place + 1]} and not "
            f"{reference.token_ids[place : place + 1]}, by a margin of {margin:.4f}, after "
            f"{reference.messages}"
        )
        error = teacher_forced_error(folder, reference)
        assert error < MAX_LOGIT_ERROR
        print(f"near-tie: margin {margin:.1e}, logits differ by {error:.1e}")
        near_ties += 1
    num_tokens = sum(len(reference.token_ids) for reference in references)
    assert near_ties <= MAX_NEAR_TIES * num_tokens, f"{near_ties} near-ties of {num_tokens} tokens"
    return near_ties


def assert_schedule(
    folder: Path,
    references: Sequence[Reference],
    schedule: str,
    *,
    max_new_tokens: int,
    eos_token_id: int,
    enable_prefix_caching: bool,
    num_gpu_blocks: int,
    encoder_cache_rows: int,
    num_preprocess_workers: int = 1,
) -> None:
    """Compare the answers under one of SCHEDULES; its preemptions and cache hits must happen.

    num_gpu_blocks      few enough for preemptions, enough for the longest conversation
    encoder_cache_rows  room for the largest image
    """
    workers = {"num_preprocess_workers": num_preprocess_workers}
    own = {"num_gpu_blocks": num_gpu_blocks, "encoder_cache_rows": encoder_cache_rows}
    engine = {
        name: own[name] if value is None else value for name, value in SCHEDULES[schedule].items()
    }
    responses, stats = answer(
        folder,
        references,
        max_new_tokens,
        enable_prefix_caching=enable_prefix_caching,
        **engine | workers,
    )
    assert_parity(folder, references, responses, eos_token_id)
    assert schedule != "preempted" or stats.num_preemptions > 0
    assert (stats.prefix_hit_tokens > 0) == enable_prefix_caching


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return place
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


@torch.inference_mode()
def teacher_forced_error(folder: Path, reference: Reference) -> float:
    """The largest difference of logits, the reference's tokens forced on our model."""
    config = read_config(folder)
    form = image_format(config)
    builder = InputBuilder(folder, form, fetch_image, max_image_pixels=1 << 28)
    prepared = builder.build(reference.messages)
    model = load_model(folder, config, dtype=torch.float32, device=_CPU)
    encoder = EncoderRunner(
        model, builder.image_processor.normalisation, dtype=torch.float32, device=_CPU
    )
    encoder.encode(prepared.images)
    token_ids = [*prepared.token_ids, *reference.token_ids]
    embeds = model.decoder.embed(torch.tensor(token_ids), encoder.rows_of(_rows(prepared)))
    num_tokens, first = len(token_ids), len(prepared.token_ids) - 1
    span = SequenceSpan(num_tokens, num_tokens, [0])
    hidden = model.decoder(
        embeds,
        torch.from_numpy(_positions(prepared, token_ids, model.decoder)),
        torch.arange(first, first + len(reference.token_ids)),
        make_caches(model.decoder, 1, block_size=num_tokens),
        plan_attention([span], block_size=num_tokens, device=_CPU),
    )
    return float((model.decoder.logits(hidden) - reference.logits).abs().max())


def _positions(
    prepared: PreparedInput, token_ids: list[int], decoder: Decoder
) -> NDArray[np.int64]:
    request = Request(
        request_id=0,
        prompt_token_ids=tuple(token_ids),
        images=prepared.images,
        generation=GenerationConfig(),
        seed=0,
    )
    sequence = EngineSequence(request, max_num_tokens=len(token_ids), stop_token_ids=frozenset())
    return positions_of(
        sequence, 0, len(token_ids), decoder.num_position_axes, decoder.usual_context
    )


def _rows(prepared: PreparedInput) -> list[EmbeddingRows]:
    return [
        EmbeddingRows(image.offset, image.content_hash, 0, image.num_tokens)
        for image in prepared.images
    ]


def answer(
    folder: Path,
    references: Sequence[Reference],
    max_new_tokens: int,
    **engine: Any,
) -> tuple[list[Response], EngineStats]:
    """Answer the references' conversations in one call; return what the engine counted too."""
    config = PytorchEngineConfig(dtype="float32", **{"device_type": "cpu"} | engine)
    with Pipeline(str(folder), backend_config=config) as pipeline:
        responses = pipeline(
            [reference.messages for reference in references],
            GenerationConfig(max_new_tokens=max_new_tokens),
        )
        return responses, pipeline.stats
