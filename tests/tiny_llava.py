"""A LLaVA checkpoint small enough to be made anew by every test that wants one.

Its weights are random, but sized as a trained model's: activations stay near one, attention is
peaked, and the logits spread, so that greedy answers are clear and follow prompt and image.
"""

from collections.abc import Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)

from examples.shapes.model import IMAGE_SIDE, NUM_PATCHES, PATCH_SIDE, VOCAB_SIZE, make_processor
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.kernels.paged_attention import SequenceSpan, plan_attention
from vlmflow_engine.layers.lora import AdapterRows
from vlmflow_engine.models.decoder import Decoder
from vlmflow_engine.models.families.llava import LlavaModel
from vlmflow_engine.models.registry import load_model, read_config
from vlmflow_engine.runner.kv_cache import allocate_layer

CPU = torch.device("cpu")

VISION_CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIDE,
    "patch_size": PATCH_SIDE,
    "projection_dim": 64,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# Of the size that keeps activations as they are. At 1 half the answers do not see their image; the
# larger it is, the more does bfloat16 differ from float32.
_GAIN = 1.5


def save_tiny_llava(folder: Path, *, seed: int = 0, scale: float = 8.0, **overrides: Any) -> Path:
    """Write a complete checkpoint: weights, configs, tokenizer, processor, chat template.

    Arguments are those of `make_tiny_llava`; the processor makes images of IMAGE_SIDE whatever
    vision_config says. Returns `folder`.
    """
    model = make_tiny_llava(seed=seed, scale=scale, **overrides)
    model.save_pretrained(folder)
    processor = copy(tiny_processor())
    # Its own copy of this field decides how many placeholders an image gets.
    processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
    processor.save_pretrained(folder)
    return folder


def make_tiny_llava(
    *, seed: int = 0, scale: float = 8.0, **overrides: Any
) -> LlavaForConditionalGeneration:
    """Build transformers' model in float32.

    scale      standard deviation of the logits, about
    overrides  fields of LlavaConfig; vision_config and text_config are laid over the tiny ones
    """
    vision = CLIPVisionConfig(**VISION_CONFIG | overrides.pop("vision_config", {}))
    text = LlamaConfig(**TEXT_CONFIG | overrides.pop("text_config", {}))
    fields = {
        "image_token_index": tiny_processor().tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": NUM_PATCHES,
        "pad_token_id": text.pad_token_id,
    }
    config = LlavaConfig(vision_config=vision, text_config=text, **fields | overrides)
    model = LlavaForConditionalGeneration(config).eval()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(text, name))
    randomise(model, seed=seed, gain=_GAIN)
    if not config.tie_word_embeddings:
        with torch.no_grad():
            model.lm_head.weight.mul_(scale / _GAIN)
            model.lm_head.weight[config.image_token_index] = 0.0  # an answer holds no image
    return model


def randomise(model: PreTrainedModel, *, seed: int, gain: float = 1.0) -> None:
    """Draw every parameter anew, biases and norms too: transformers begins them at 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.1 * noise)
            elif weight.ndim == 1:
                weight.copy_(0.1 * noise)
            elif "embed_tokens" in name:
                weight.copy_(noise)
            else:
                weight.copy_(noise * gain / weight[0].numel() ** 0.5)


@cache
def tiny_processor() -> LlavaProcessor:
    """The shapes model's processor; its tokenizer is trained once a process."""
    return make_processor()


def load_tiny_llava(folder: Path) -> LlavaModel:
    """Load a checkpoint as the engine does, in float32 on the CPU."""
    return load_model(folder, read_config(folder), dtype=torch.float32, device=CPU)


def make_caches(
    decoder: Decoder, num_blocks: int, *, block_size: int, quant_policy: int = 0
) -> list[LayerKVCache]:
    """Each layer's part of an empty KV cache."""
    shape = (num_blocks, block_size, decoder.num_kv_heads, decoder.head_dim)
    dtype = decoder.embedding.dtype
    return [
        allocate_layer(shape, quant_policy=quant_policy, dtype=dtype, device=CPU)
        for _ in range(decoder.num_layers)
    ]


@torch.inference_mode()
def compute_logits(
    decoder: Decoder,
    prompts: Sequence[Tensor],
    steps: Sequence[Sequence[tuple[int, int]]] | None = None,
    *,
    block_size: int = 16,
    adapter: str | None = None,
    quant_policy: int = 0,
) -> list[Tensor]:
    """Run token ids through a decoder and its paged cache; return each prompt's logits, all rows.

    steps    of each step: (index of a prompt, how many more of its tokens); None: all in one step
    adapter  of all prompts
    """
    steps = steps or [[(index, len(prompt)) for index, prompt in enumerate(prompts)]]
    counts = [-(-len(prompt) // block_size) for prompt in prompts]
    # Block b of sequence s is b * len(prompts) + s: no sequence has neighbouring blocks.
    tables = [list(range(s, n * len(prompts), len(prompts))) for s, n in enumerate(counts)]
    caches = make_caches(
        decoder, max(counts) * len(prompts), block_size=block_size, quant_policy=quant_policy
    )
    logits: list[list[Tensor]] = [[] for _ in prompts]
    computed = [0] * len(prompts)
    for step in steps:
        spans, token_ids, positions = [], [], []
        for index, num_new_tokens in step:
            start, end = computed[index], computed[index] + num_new_tokens
            spans.append(SequenceSpan(num_new_tokens, end, tables[index]))
            token_ids.append(prompts[index][start:end])
            positions.append(torch.arange(start, end))
            computed[index] = end
        hidden = decoder(
            decoder.embed(torch.cat(token_ids)),
            torch.cat(positions),
            torch.arange(sum(span.num_new_tokens for span in spans)),
            caches,
            plan_attention(spans, block_size=block_size, device=CPU),
            None if adapter is None else [AdapterRows(adapter, None)],
        )
        rows = decoder.logits(hidden).split([span.num_new_tokens for span in spans])
        for (index, _), new in zip(step, rows, strict=True):
            logits[index].append(new)
    return [torch.cat(rows) for rows in logits]
