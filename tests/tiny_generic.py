"""Tiny random checkpoints of families that run through transformers' own code."""

import sys
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import (
    AutoModelForImageTextToText,
    AyaVisionConfig,
    AyaVisionProcessor,
    Cohere2Config,
    Glm4vConfig,
    Glm4vImageProcessorPil,
    Glm4vProcessor,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Idefics3VisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    Mistral3Config,
    MistralConfig,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from examples.shapes.model import CHAT_TEMPLATE
from tests.tiny_llava import TEXT_CONFIG, randomise, tiny_processor

_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_IMAGE = "<image>"


def _tokenizer(*tokens: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, with further special tokens."""
    tokenizer = deepcopy(tiny_processor().tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.chat_template = None
    return tokenizer


def _text(tokenizer: PreTrainedTokenizerFast, **fields: Any) -> dict[str, Any]:
    return TEXT_CONFIG | {"vocab_size": len(tokenizer), "tie_word_embeddings": False} | fields


def _template(token: str) -> str:
    return CHAT_TEMPLATE.replace(_IMAGE, token)


def _bare(kind: Any) -> Any:
    """The class without a part for videos, which would want torchvision."""
    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda *_: None})


def _pixtral_processor(**fields: Any) -> Any:
    """transformers' own class, which without torchvision is hidden for want of one function."""
    package = "transformers.models.pixtral"
    pillow = import_module(f"{package}.image_processing_pil_pixtral")
    with patch.dict(sys.modules, {f"{package}.image_processing_pixtral": pillow}):
        return import_module(f"{package}.processing_pixtral").PixtralProcessor(**fields)


def make_llava_onevision() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<video>")
    pinpoints = [[48, 48], [48, 96], [96, 48], [96, 96]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_VISION, image_size=48, patch_size=16),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    processor = _bare(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": 48, "width": 48}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=_template(_IMAGE),
    )
    return config, processor


def make_idefics3() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        "<fake_token_around_image>",
        "<end_of_utterance>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    )
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**_VISION, image_size=32, patch_size=8),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE),
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 96}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=_template(_IMAGE),
    )
    return config, processor


def make_pixtral() -> tuple[Any, Any]:
    tokenizer = _tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(**_VISION, image_size=128, patch_size=16, head_dim=16),
        text_config=MistralConfig(**_text(tokenizer, sliding_window=None)),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    processor = _pixtral_processor(
        image_processor=PixtralImageProcessorPil(
            size={"longest_edge": 128}, patch_size={"height": 16, "width": 16}
        ),
        tokenizer=tokenizer,
        patch_size=16,
        chat_template=_template("[IMG]"),
    )
    return config, processor


def make_mistral3() -> tuple[Any, Any]:
    tokenizer = _tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**_VISION, image_size=128, patch_size=16, head_dim=16),
        text_config=MistralConfig(**_text(tokenizer, sliding_window=24)),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    processor = _pixtral_processor(
        image_processor=PixtralImageProcessorPil(
            size={"longest_edge": 128}, patch_size={"height": 16, "width": 16}
        ),
        tokenizer=tokenizer,
        patch_size=16,
        spatial_merge_size=2,
        chat_template=_template("[IMG]"),
    )
    return config, processor


def make_aya_vision() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE",
        "TILE_GLOBAL",
    )
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**_VISION, image_size=64, patch_size=16),
        text_config=Cohere2Config(**_text(tokenizer, sliding_window=16, layer_norm_eps=1e-5)),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        alignment_intermediate_size=64,
        tie_word_embeddings=False,
    )
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": 64, "width": 64}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        patch_size=16,
        img_size=64,
        downsample_factor=2,
        chat_template=_template(_IMAGE),
    )
    return config, processor


def make_glm4v() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        "<|video|>",
        "<|begin_of_image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
    )
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = Glm4vConfig(
        vision_config={
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "depth": 2,
            "num_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "spatial_merge_size": 2,
        },
        text_config=_text(tokenizer, head_dim=16, rope_parameters=rope),
        image_token_id=ids(_IMAGE),
        video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"),
        image_end_token_id=ids("<|end_of_image|>"),
        video_start_token_id=ids("<|begin_of_video|>"),
        video_end_token_id=ids("<|end_of_video|>"),
        tie_word_embeddings=False,
    )
    processor = _bare(Glm4vProcessor)(
        image_processor=Glm4vImageProcessorPil(
            size={"shortest_edge": 2 * 32 * 32, "longest_edge": 2 * 96 * 96},
            patch_size=8,
            merge_size=2,
        ),
        tokenizer=tokenizer,
        chat_template=_template(f"<|begin_of_image|>{_IMAGE}<|end_of_image|>"),
    )
    return config, processor


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava-onevision": make_llava_onevision,
    "idefics3": make_idefics3,
    "pixtral": make_pixtral,
    "mistral3": make_mistral3,
    "aya-vision": make_aya_vision,
    "glm-4v": make_glm4v,
}


def save_tiny_generic(name: str, folder: Path, *, seed: int = 0, scale: float = 8.0) -> Path:
    """Write a complete checkpoint of one of MAKERS; `scale` is the logits' deviation, about."""
    config, processor = MAKERS[name]()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, field, TEXT_CONFIG[field])
    randomise(model, seed=seed, gain=1.5)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.mul_(scale / 1.5)
        head[3] = 0.0  # an answer holds no image
        head[512:] = 0.0
    model.save_pretrained(folder)
    parts = ["image_processor", "tokenizer"]  # which is all there are
    with patch.object(type(processor), "get_attributes", lambda *_: parts):
        processor.save_pretrained(folder)
    return folder
