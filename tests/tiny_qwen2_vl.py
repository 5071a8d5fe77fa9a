"""A Qwen2-VL or Qwen2.5-VL checkpoint small enough to be made anew by every test that wants one.

Image tokens of 28 x 28 pixels as in the real ones, and windows of 2 x 2 of them, so that images of
a few hundred pixels have many windows and ragged ones at their edges.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)

from tests.tiny_llava import randomise

# The tokens that the templates, the config and the image processor know.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCAB_SIZE = 512
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 64
EOS = 507  # <|im_end|>

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 3, 3],
    },
}
VISION_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "depth": 3,
        "embed_dim": 32,
        "hidden_size": 64,
        "mlp_ratio": 2,
        "num_heads": 2,
    },
    "qwen2_5_vl": {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3],
    },
}
_MODELS = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
}
KINDS = tuple(_MODELS)  # model_type of config.json
_GAIN = 1.5  # see tests.tiny_llava


def save_tiny_qwen2_vl(
    folder: Path, kind: str, *, image_processor: dict[str, Any] | None = None, **overrides: Any
) -> Path:
    """Write a complete checkpoint: weights, configs, tokenizer, image processor, chat template.

    image_processor  fields of preprocessor_config.json, over those of the tiny one
    Other arguments are those of `make_tiny_qwen2_vl`. Returns `folder`.
    """
    make_tiny_qwen2_vl(kind, **overrides).save_pretrained(folder)
    save_processor(folder, **image_processor or {})
    return folder


def save_processor(folder: Path, **image_processor: Any) -> None:
    """Write what turns messages into a model's input."""
    tiny_tokenizer().save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    fields = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(fields | image_processor))


class ImagesOnlyProcessor(Qwen2VLProcessor):
    """transformers' processor without its part for videos, which asks for torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template)


def make_tiny_qwen2_vl(
    kind: str, *, seed: int = 0, scale: float = 8.0, **overrides: Any
) -> PreTrainedModel:
    """Build transformers' model in float32.

    kind       one of KINDS
    scale      standard deviation of the logits, about
    overrides  fields of the config; vision_config and text_config are laid over the tiny ones
    """
    config_class, model_class = _MODELS[kind]
    ids = {token: VOCAB_SIZE - len(SPECIAL_TOKENS) + i for i, token in enumerate(SPECIAL_TOKENS)}
    text = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": EOS}
    config = config_class(
        text_config=TEXT_CONFIG | text | overrides.pop("text_config", {}),
        vision_config=VISION_CONFIGS[kind] | overrides.pop("vision_config", {}),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        **overrides,
    )
    model = model_class(config).eval()
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    randomise(model, seed=seed, gain=_GAIN)
    if not config.tie_word_embeddings:
        with torch.no_grad():
            model.lm_head.weight.mul_(scale / _GAIN)
            for name in ("image", "video"):  # an answer holds no image
                model.lm_head.weight[ids[f"<|{name}_pad|>"]] = 0.0
    return model


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's cut of words; it is trained once a process."""
    tokenizer = Tokenizer(models.BPE())
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"), behavior="isolated", invert=False
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    licence = Path(__file__).parents[1] / "LICENSE"
    tokenizer.train_from_iterator(licence.read_text().split("\n\n"), trainer)
    # Behind the vocabulary, as in the real ones.
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    assert tokenizer.token_to_id("<|im_end|>") == EOS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
