"""Adapters of the tiny LLaVA, made, saved and merged by PEFT itself."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.tiny_llava import make_tiny_llava, tiny_processor

LANGUAGE_MODEL = r".*language_model.*_proj"


def make_adapter(
    model: PreTrainedModel | None = None, *, seed: int = 1, config: PeftConfig | None = None, **lora
) -> PeftModel:
    """Put an adapter on a model (None: the tiny LLaVA) and draw its weights.

    They are sized so that what the adapter adds to a layer is as large as the layer's own output.
    lora  fields of LoraConfig, over rank 4 on all linear layers of the language model
    """
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE_MODEL}
    with warnings.catch_warnings():
        # PEFT reads a property that transformers has renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        peft_model = get_peft_model(
            make_tiny_llava() if model is None else model, config or LoraConfig(**fields | lora)
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if ".lora_A." in name:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise / weight.shape[1] ** 0.5)
            elif ".lora_B." in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return peft_model


def save_adapter(folder: Path, **lora: Any) -> Path:
    """Make an adapter and save it as PEFT does; arguments are those of `make_adapter`."""
    make_adapter(**lora).save_pretrained(str(folder))
    return folder


def save_adapter_and_merged(folder: Path, merged_folder: Path, **lora: Any) -> None:
    """Save an adapter, and the checkpoint that PEFT makes of base model and adapter."""
    peft_model = make_adapter(**lora)
    peft_model.save_pretrained(str(folder))
    peft_model.merge_and_unload().save_pretrained(merged_folder)
    tiny_processor().save_pretrained(merged_folder)
