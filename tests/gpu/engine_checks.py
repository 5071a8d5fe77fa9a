"""What an engine must hold on a device: transformers' tokens, and the same bits in any batch."""

from pathlib import Path
from typing import Any

import torch

from tests.gpu.checkpoints import TinyFamily
from tests.parity import answer, assert_parity, conversations
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

# What may change no token in float32, as fields of the engine's config.
SCHEDULES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "no graphs": {"eager_mode": True},
    "steps one by one": {"async_scheduling": False},
    "neither": {"eager_mode": True, "async_scheduling": False},
    "chunks of 16": {"max_prefill_token_num": 16},
    "batches of 7, pages of 16": {"max_batch_size": 7, "block_size": 16},
    "no prefix cache": {"enable_prefix_caching": False},
    # Blocks for little more than the longest conversation: whether someone is preempted depends on
    # when requests arrive.
    "few pages": {"block_size": 16, "num_gpu_blocks": None, "max_prefill_token_num": 100},
}


def check_parity(
    family: TinyFamily, folder: Path, device: str, *, count: int, schedules: list[str]
) -> dict[str, Any]:
    """Compare answers with transformers', token by token, under each schedule.

    Raises AssertionError.
    """
    references = family.references(folder, count, device)
    num_tokens = sum(len(reference.token_ids) for reference in references)
    longest = max(len(item.input_ids) + len(item.token_ids) for item in references)
    near_ties, num_preemptions = {}, 0
    for schedule in schedules:
        engine = {
            name: longest // 16 + 2 if value is None else value
            for name, value in SCHEDULES[schedule].items()
        }
        responses, stats = answer(
            folder, references, 16, device_type=device, num_preprocess_workers=0, **engine
        )
        near_ties[schedule] = assert_parity(folder, references, responses, family.eos_token_id)
        num_preemptions += stats.num_preemptions
    return {
        "num_answers": len(references),
        "num_tokens": num_tokens,
        "near_ties": near_ties,
        "num_preemptions": num_preemptions,
    }


def check_invariance(
    family: TinyFamily, folder: Path, device: str, *, batch_size: int, tolerance: float
) -> dict[str, Any]:
    """Compare a record's logits alone with those among others and in another order.

    tolerance  0: bit by bit
    Raises AssertionError.
    """
    messages = conversations(batch_size, family.sizes)
    alone = _logits(folder, messages[:1], device)
    among = _logits(folder, messages, device)
    behind = _logits(folder, messages[::-1], device)
    worst = 0.0
    for other in (among[0], behind[-1]):
        assert other.shape == alone[0].shape
        worst = max(worst, float((other - alone[0]).abs().max()))
    assert worst <= tolerance, f"a record's logits differ by {worst:.2e} in another batch"
    # Else equal logits would prove nothing.
    assert any(not torch.equal(alone[0][:1], row[:1]) for row in among[1:])
    return {"batch_size": batch_size, "largest_difference": worst, "dtype": "bfloat16"}


def _logits(folder: Path, messages: list[Any], device: str) -> list[torch.Tensor]:
    """Of each answer's tokens, [8, vocab_size], without a prefix cache."""
    config = PytorchEngineConfig(
        dtype="bfloat16",
        device_type=device,
        batch_invariant=device == "cuda",  # which there is on no CPU
        enable_prefix_caching=False,
        num_preprocess_workers=0,
        max_batch_size=128,
    )
    generation = GenerationConfig(max_new_tokens=8, ignore_eos=True, output_logits="generation")
    with Pipeline(str(folder), backend_config=config) as pipeline:
        responses = pipeline(messages, generation)
    for response in responses:
        assert response.error_message is None, response.error_message
    return [torch.as_tensor(response.logits).float().cpu() for response in responses]
