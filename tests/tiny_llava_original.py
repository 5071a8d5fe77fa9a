"""LLaVA checkpoints in their authors' form, from the random numbers of Hugging Face twins."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny_tokenizers import write_llama_sentencepiece

VOCAB_SIZE = 640  # of the tokenizer that is written beside the weights

# From what transformers 5 calls a tensor to what the authors do.
_NAMES = (
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
)
_TOWER = "model.vision_tower.vision_tower."


def write_original(
    folder: Path, twin: PreTrainedModel, *, tower_folder: str | None = None, **fields: Any
) -> Path:
    """Write a twin's numbers as the authors would; return `folder`.

    tower_folder  write the tower there, below `folder`, as a CLIP checkpoint, as LLaVA-1.5 has it;
                  None: among the other weights, as LLaVA-1.6 has it
    fields        of config.json that are to be others; None: left out
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, text = twin.config, twin.config.text_config
    tensors = {_original_name(name): tensor for name, tensor in twin.state_dict().items()}
    # Traps: buffers that old files carry.
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors[f"{_TOWER}vision_model.embeddings.position_ids"] = torch.arange(4)[None]
    if tower_folder is not None:
        tower = {n: tensors.pop(n) for n in list(tensors) if n.startswith(_TOWER)}
        _write_tower(folder / tower_folder, tower, config.vision_config)
    else:
        write_tower_config(folder / "clip-tiny", config.vision_config)
    _write_shards(folder, tensors)
    content: dict[str, Any] = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "rms_norm_eps": text.rms_norm_eps,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "mm_vision_tower": tower_folder or "./clip-tiny",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": tower_folder is None,
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
    }
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if pinpoints is None:
        content["image_aspect_ratio"] = "pad"
    else:
        content |= {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": str(pinpoints),
            "image_crop_resolution": 224,
            "image_split_resolution": 224,
        }
    content = {name: value for name, value in (content | fields).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    write_llama_sentencepiece(folder, vocab_size=VOCAB_SIZE)
    return folder


def write_tower_config(folder: Path, vision_config: Any) -> None:
    """Write config.json and preprocessor_config.json of a CLIP tower."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_type": "clip", "vision_config": vision_config.to_dict()}
    (folder / "config.json").write_text(json.dumps(content))
    side = vision_config.image_size
    processor = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _write_tower(folder: Path, tensors: dict[str, Tensor], vision_config: Any) -> None:
    write_tower_config(folder, vision_config)
    renamed = {name.removeprefix(_TOWER): tensor for name, tensor in tensors.items()}
    # What of CLIP no LLaVA has a use for.
    renamed |= {"text_model.final_layer_norm.bias": torch.ones(3), "logit_scale": torch.ones(())}
    contiguous = {name: tensor.contiguous() for name, tensor in renamed.items()}
    save_file(contiguous, folder / "model.safetensors")


def _write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2]}
    shards["model-00002-of-00002.safetensors"] = names[1::2]
    for file, own in shards.items():
        save_file({name: tensors[name].contiguous() for name in own}, folder / file)
    places = {name: file for file, own in shards.items() for name in own}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").write_bytes(b"a twin that nobody reads")


def _original_name(name: str) -> str:
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
