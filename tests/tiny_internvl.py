"""InternVL checkpoints in Hugging Face form, small enough to be made anew.

`tests.tiny_internvl_original` writes the same models as OpenGVLab would have.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tests.tiny_llava import randomise, tiny_processor

SIDE, PATCH = 56, 14  # of a tile and a patch, in pixels
ROWS = (SIDE // PATCH // 2) ** 2  # embedding rows of a tile
CONTEXT = "<IMG_CONTEXT>"
TOKENS = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", CONTEXT, "<video>")

# That of the checkpoints of Hugging Face form.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_TOWERS: dict[str, dict[str, Any]] = {
    "300m": {"norm_type": "layer_norm", "attention_bias": True, "use_qk_norm": False},
    "6b": {"norm_type": "rms_norm", "attention_bias": False, "use_qk_norm": True},
}
_TEXT: dict[str, Any] = {
    "vocab_size": 704,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
_TEXT_CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "internlm2": (LlamaConfig, {"rope_parameters": _DYNAMIC}),
    "llama": (LlamaConfig, {}),
    "phi3": (Phi3Config, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
}
_GAIN = 1.5
_LOGIT_SCALE = 8.0  # standard deviation of the logits, about


def make_internvl(
    text: str = "qwen2",
    tower: str = "300m",
    *,
    seed: int = 0,
    image_token_id: int | None = None,
    vision_config: dict[str, Any] | None = None,
    text_config: dict[str, Any] | None = None,
    **fields: Any,
) -> InternVLForConditionalGeneration:
    """Build transformers' model in float32, its numbers drawn at random.

    text   of _TEXT_CONFIGS; what the original calls internlm2 is a Llama here
    tower  300m or 6b: what the two sizes of InternViT differ in
    """
    kind, own = _TEXT_CONFIGS[text]
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": [SIDE, SIDE],
        "patch_size": [PATCH, PATCH],
    }
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision | _TOWERS[tower] | (vision_config or {})),
        text_config=kind(**_TEXT | own | (text_config or {})),
        image_token_id=image_token_id or tiny_tokenizer().convert_tokens_to_ids(CONTEXT),
        image_seq_length=ROWS,
        **{"tie_word_embeddings": False} | fields,
    )
    model = InternVLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = 0
    randomise(model, seed=seed, gain=_GAIN)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "lambda_" in name:  # at the size of norms: both branches of a layer count
                weight.copy_(0.7 + 0.1 * noise)
            elif name.endswith(("cls_token", "position_embeddings")):
                weight.copy_(noise)
        model.lm_head.weight.mul_(_LOGIT_SCALE / _GAIN)
        model.lm_head.weight[config.image_token_id] = 0.0  # an answer holds no image
    return model


class ImagesOnlyProcessor(InternVLProcessor):
    """transformers' processor without its part for videos, which asks for torchvision."""

    def __init__(
        self, image_processor=None, tokenizer=None, image_seq_length=256, chat_template=None
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template)


def save_hf(
    folder: Path, model: InternVLForConditionalGeneration, *, max_patches: int = 12
) -> Path:
    """Write the model with processor, tokenizer and chat template; return `folder`."""
    model.save_pretrained(folder)
    save_processor(folder, max_patches=max_patches)
    return folder


def save_processor(folder: Path, **image_processor: Any) -> None:
    """Write what turns messages into a model's input; fields are GotOcr2ImageProcessor's."""
    fields = {
        "size": {"height": SIDE, "width": SIDE},
        "crop_to_patches": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    processor = ImagesOnlyProcessor(
        image_processor=GotOcr2ImageProcessorPil(**fields | image_processor),
        tokenizer=deepcopy(tiny_tokenizer()),
        image_seq_length=ROWS,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The shapes model's tokenizer with the tokens of a checkpoint in Hugging Face form."""
    tokenizer = deepcopy(tiny_processor().tokenizer)
    tokenizer.chat_template = None
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_tokens(tokenizer.backend_tokenizer),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": CONTEXT,
            "video_token": "<video>",
        },
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _with_tokens(tokenizer: Any) -> Any:
    tokenizer.add_special_tokens(list(TOKENS))
    return tokenizer
