"""InternVL in the form in which OpenGVLab published it: one config.json, InternLM2 and others."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.models.families.internvl import (
    FIRST_TOKEN,
    LAST_TOKEN,
    InternVLFamily,
    patch_parameters,
)
from vlmflow_engine.models.internvl_chat_config import read_internvl_chat
from vlmflow_engine.models.weights import Checkpoint, Renames

_CONTEXT_TOKEN = "<IMG_CONTEXT>"

# From the authors' names to the engine's, which are transformers'.
_VISION_LAYER = r"vision_model\.encoder\.layers\.(\d+)\."
_TEXT_LAYER = r"language_model\.model\.layers\.(\d+)\."
_RENAMES: Renames = (
    (r"vision_model\.embeddings\.class_embedding", "vision.embeddings.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", "vision.embeddings.position_embeddings"),
    (
        r"vision_model\.embeddings\.patch_embedding\.",
        "vision.embeddings.patch_embeddings.projection.",
    ),
    *(
        (_VISION_LAYER + theirs, rf"vision.encoder.layer.\1.{ours}")
        for theirs, ours in {
            r"attn\.proj\.": "attention.projection_layer.",
            r"attn\.": "attention.",
            r"norm1\.": "layernorm_before.",
            r"norm2\.": "layernorm_after.",
            r"ls1$": "lambda_1",
            r"ls2$": "lambda_2",
            "": "",
        }.items()
    ),
    (r"mlp1\.0\.", "projector.layer_norm."),
    (r"mlp1\.1\.", "projector.linear_1."),
    (r"mlp1\.3\.", "projector.linear_2."),
    # InternLM2's own names.
    *(
        (_TEXT_LAYER + theirs, rf"text.layers.\1.{ours}")
        for theirs, ours in {
            r"attention\.wo\.": "self_attn.o_proj.",
            r"feed_forward\.w1\.": "mlp.gate_proj.",
            r"feed_forward\.w2\.": "mlp.down_proj.",
            r"feed_forward\.w3\.": "mlp.up_proj.",
            r"attention_norm\.": "input_layernorm.",
            r"ffn_norm\.": "post_attention_layernorm.",
        }.items()
    ),
    (r"language_model\.model\.tok_embeddings\.", "text.embed_tokens."),
    (r"language_model\.output\.", "lm_head."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"language_model\.model\.", "text."),
)


class InternVLChatFamily(InternVLFamily):
    name = "InternVL 2, 2.5, 3 and 3.5"
    form = "original"
    architectures = ("InternVLChatModel",)
    checkpoints = "OpenGVLab/InternVL2-*, InternVL2_5-*, InternVL3-*, InternVL3_5-*"
    tested = (
        "answers equal, bit by bit, to a twin in Hugging Face form; prompts, ids and pixels beside "
        "an independent derivation; with language models InternLM2, Qwen2, Qwen3, Phi-3 and Llama"
    )
    limits = (
        "other language models (InternLM3, mixtures of experts) and pad2square are refused; an "
        "adapter of InternLM2's fused wqkv cannot be placed"
    )

    def read_config(self, raw: dict[str, Any], folder: Path, source: str) -> Any:
        return read_internvl_chat(raw, source)

    def image_format(self, config: Any) -> ImageFormat:
        settings = asdict(config.image_settings)
        template, system = settings.pop("template"), settings.pop("system")
        return ImageFormat(
            processor="internvl_chat",
            parameters=patch_parameters(config) | settings,
            token=_CONTEXT_TOKEN,
            first_token=FIRST_TOKEN,
            last_token=LAST_TOKEN,
            template=template,
            system=system,
        )

    def renames(self, config: Any) -> Renames:
        return _RENAMES

    def open(
        self, folder: Path, config: Any, *, dtype: torch.dtype, device: torch.device
    ) -> Checkpoint:
        weights = super().open(folder, config, dtype=dtype, device=device)
        weights.split(
            r"(vision\.encoder\.layer\.\d+\.attention)\.qkv",
            {rf"\1.{name}_proj": config.vision_config.hidden_size for name in "qkv"},
        )
        return weights
