"""The 0.27 B LLaVA and the workloads that engines are compared on."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from benchmarks.request import BenchmarkRequest
from examples.shapes.model import make_processor

IMAGE_SIDE, PATCH_SIDE = 336, 14
NUM_PATCHES = (IMAGE_SIDE // PATCH_SIDE) ** 2
WORDS = ("describe", "the", "scene", "how", "many", "red", "shapes", "are", "there", "at", "top")


@dataclass(frozen=True, slots=True)
class Workload:
    """So many images of 640 x 480, prompts of 10 to 60 tokens, and answers of given lengths."""

    name: str
    title: str
    num_images: int
    prompts_per_image: int
    min_new_tokens: int
    max_new_tokens: int

    @property
    def num_requests(self) -> int:
        return self.num_images * self.prompts_per_image

    @property
    def about(self) -> str:
        outputs = str(self.min_new_tokens)
        if self.max_new_tokens > self.min_new_tokens:
            outputs += f" to {self.max_new_tokens}"
        images = f"{self.num_images} images"
        if self.prompts_per_image > 1:
            images += f" x {self.prompts_per_image} prompts"
        return f"{images}, outputs of {outputs} tokens"


WORKLOADS = (
    Workload("W1", "captions", 48, 1, 16, 96),
    Workload("W2", "many questions an image", 12, 8, 4, 24),
    Workload("W3", "prefill-bound", 48, 1, 1, 4),
    Workload("W4", "long output", 16, 1, 256, 256),
)
# To see that everything runs.
QUICK_WORKLOADS = (
    Workload("W1", "captions", 4, 1, 4, 24),
    Workload("W2", "many questions an image", 2, 3, 2, 6),
    Workload("W3", "prefill-bound", 4, 1, 1, 4),
    Workload("W4", "long output", 3, 1, 32, 32),
)


def make_checkpoint(folder: Path) -> Path:
    """Write random weights in bfloat16, once; the same ones on every machine."""
    return _make(folder, narrowing=1)


def make_narrow_checkpoint(folder: Path) -> Path:
    """The same layers, each of a sixteenth of the width: nearly all of a step is overhead."""
    return _make(folder, narrowing=16)


def _make(folder: Path, narrowing: int) -> Path:
    if (folder / "model.safetensors").is_file():
        return folder
    processor = make_processor()
    processor.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )
    processor.patch_size = PATCH_SIDE
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=384 // narrowing,
            intermediate_size=1536 // narrowing,
            num_hidden_layers=12,
            num_attention_heads=max(1, 6 // narrowing),
            image_size=IMAGE_SIDE,
            patch_size=PATCH_SIDE,
            projection_dim=384 // narrowing,
        ),
        text_config=LlamaConfig(
            vocab_size=32_064 // narrowing,
            hidden_size=1024 // narrowing,
            intermediate_size=2816 // narrowing,
            num_hidden_layers=16,
            num_attention_heads=16 // narrowing,
            num_key_value_heads=max(1, 4 // narrowing),
            head_dim=64,
            max_position_embeddings=2048,
        ),
        image_token_index=processor.image_token_id,
        image_seq_length=NUM_PATCHES,
    )
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    # An answer that holds an image token cannot be fed back to transformers.
    with torch.no_grad():
        model.lm_head.weight[processor.image_token_id] = 0
    model.save_pretrained(folder)
    return folder


def make_requests(folder: Path, workload: Workload, seed: int = 0) -> list[BenchmarkRequest]:
    """The same ones each time, in the order of a manifest: an image's prompts one after another."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    _save_image(folder / "warm-up.png", (seed + 1,))
    requests = []
    for index in range(workload.num_images):
        path = folder / f"{seed}-{index}.png"
        _save_image(path, (seed, index))
        for _ in range(workload.prompts_per_image):
            words = rng.choices(WORDS, k=rng.randint(10, 60))  # each word is a token
            length = rng.randint(workload.min_new_tokens, workload.max_new_tokens)
            requests.append(BenchmarkRequest(str(path), " ".join(words), length))
    return requests


def _save_image(path: Path, seed: tuple[int, ...]) -> None:
    # Written anew each time: one that another version of this file has left may be another's equal,
    # and what is asked about an image twice is computed once.
    small = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), np.uint8)
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(path)
