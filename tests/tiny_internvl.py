"""InternVL checkpoints small enough to be made anew, in Hugging Face form and in the original one.

Both forms are written from one model's numbers, the original under OpenGVLab's names and in its
fused shapes, with what such checkpoints carry beside: buffers, dumped defaults, remote code.
"""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
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
_ARCHITECTURES = {
    "internlm2": "InternLM2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
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


def save_original(
    folder: Path,
    model: InternVLForConditionalGeneration,
    text: str,
    tower: str,
    **fields: Any,
) -> Path:
    """Write the same numbers as OpenGVLab would have; no tokenizer. Returns `folder`.

    fields  of config.json that are to be others; None leaves one out
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.contiguous()
        for stored, tensor in model.state_dict().items()
        for name, tensor in _original(stored, tensor)
    }
    if text == "internlm2":
        _fuse_internlm2(tensors, model.config.text_config)
    _fuse_vision(tensors)
    tensors["language_model.model.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)
    _write_shards(folder, tensors)
    content = original_config(model.config, text, tower) | fields
    content = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"an older copy")
    return folder


def original_config(config: InternVLConfig, text: str, tower: str) -> dict[str, Any]:
    """The content of the original's config.json, dumped defaults and all."""
    llm = {
        **config.text_config.to_dict(),
        "architectures": [_ARCHITECTURES[text]],
        "model_type": text,
        "_name_or_path": "./pretrained/language",
        "torch_dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "do_sample": False,
        "num_beams": 1,
        "temperature": 1.0,
        "pruned_heads": {},
        "auto_map": {"AutoConfig": "configuration_language.Config"},
        "transformers_version": "4.37.2",
    }
    rope = llm.pop("rope_parameters")
    llm["rope_theta"] = rope.pop("rope_theta")
    llm["rope_scaling"] = None
    if rope.pop("rope_type") == "dynamic":
        llm["rope_scaling"] = {"type": "dynamic", **rope}
    if text == "internlm2":
        llm["bias"] = llm.pop("attention_bias")
        del llm["mlp_bias"]
    vision = config.vision_config
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "model_type": "internvl_chat",
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": SIDE,
        "llm_config": llm,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": config.vision_feature_layer,
        "template": "internlm2-chat",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "image_size": vision.image_size[0],
            "patch_size": vision.patch_size[0],
            "norm_type": vision.norm_type,
            "qkv_bias": vision.attention_bias,
            "qk_normalization": vision.use_qk_norm,
            "layer_norm_eps": vision.layer_norm_eps,
            "hidden_act": vision.hidden_act,
            "use_flash_attn": True,
            "drop_path_rate": 0.1,
        },
    }


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


def _original(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """One tensor of transformers' under OpenGVLab's name."""
    name = name.removeprefix("model.")
    if name == "lm_head.weight":
        return [("language_model.lm_head.weight", tensor)]
    if name.startswith("language_model."):
        return [(name.replace("language_model.", "language_model.model.", 1), tensor)]
    for theirs, ours in (
        ("multi_modal_projector.layer_norm", "mlp1.0"),
        ("multi_modal_projector.linear_1", "mlp1.1"),
        ("multi_modal_projector.linear_2", "mlp1.3"),
        ("vision_tower.", "vision_model."),
        ("embeddings.cls_token", "embeddings.class_embedding"),
        ("embeddings.position_embeddings", "embeddings.position_embedding"),
        ("patch_embeddings.projection", "patch_embedding"),
        ("encoder.layer.", "encoder.layers."),
        ("attention.projection_layer", "attn.proj"),
        (".attention.", ".attn."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("lambda_", "ls"),
    ):
        name = name.replace(theirs, ours)
    return [(name, tensor)]


def _fuse_vision(tensors: dict[str, Tensor]) -> None:
    """q, k and v of a layer one after another, as attn.qkv."""
    for name in [name for name in tensors if ".attn.q_proj." in name]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[name.replace("q_proj", "qkv")] = torch.cat(parts)


def _fuse_internlm2(tensors: dict[str, Tensor], config: Any) -> None:
    """InternLM2's names, and for each KV head its query heads, then key, then value."""
    kv_heads = config.num_key_value_heads
    for name in [name for name in tensors if name.startswith("language_model.")]:
        new = name
        for theirs, ours in (
            ("embed_tokens", "tok_embeddings"),
            ("language_model.lm_head", "language_model.output"),
            ("self_attn.o_proj", "attention.wo"),
            ("mlp.gate_proj", "feed_forward.w1"),
            ("mlp.down_proj", "feed_forward.w2"),
            ("mlp.up_proj", "feed_forward.w3"),
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            new = new.replace(theirs, ours)
        tensors[new] = tensors.pop(name)
    for name in [name for name in tensors if "self_attn.q_proj" in name]:
        groups = [
            tensors.pop(name.replace("q_proj", f"{part}_proj")).unflatten(0, (kv_heads, -1))
            for part in "qkv"
        ]
        fused = torch.cat(groups, dim=1).flatten(0, 1)
        tensors[name.replace("self_attn.q_proj", "attention.wqkv")] = fused.contiguous()


def _write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = sorted(tensors)
    shards = {
        f"model-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)
    }
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    places = {name: file for file, part in shards.items() for name in part}
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
