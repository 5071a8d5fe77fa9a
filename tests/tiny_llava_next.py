"""A LLaVA-1.6 in Hugging Face form, small enough to be made anew, with tiles of 42 x 42 pixels."""

from copy import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)

from tests.tiny_llava import TEXT_CONFIG, VISION_CONFIG, randomise, tiny_processor

SIDE, PATCH = 42, 14
FEATURES = SIDE // PATCH
PINPOINTS = [
    [SIDE * columns, SIDE * rows] for columns, rows in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
]


def make_tiny_llava_next(*, seed: int = 0, **overrides: Any) -> LlavaNextForConditionalGeneration:
    """Build transformers' model in float32.

    overrides  fields of LlavaNextConfig; vision_config and text_config are laid over the tiny ones
    """
    vision = VISION_CONFIG | {"image_size": SIDE, "patch_size": PATCH}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision | overrides.pop("vision_config", {})),
        text_config=LlamaConfig(**TEXT_CONFIG | overrides.pop("text_config", {})),
        image_token_index=tiny_processor().tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        **overrides,
    )
    model = LlavaNextForConditionalGeneration(config).eval()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(config.text_config, name))
    randomise(model, seed=seed, gain=1.5)
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0 / 1.5)
        model.lm_head.weight[config.image_token_index] = 0.0  # an answer holds no image
    return model


def save_tiny_llava_next(folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write weights, configs, tokenizer, processor and chat template; return `folder`."""
    make_tiny_llava_next(seed=seed, **overrides).save_pretrained(folder)
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=copy(tiny_processor().tokenizer),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny_processor().chat_template,
    ).save_pretrained(folder)
    return folder
