"""The 0.27 B LLaVA and the requests that engines are compared on."""

import random
from dataclasses import asdict, dataclass
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

from examples.shapes.model import make_processor

IMAGE_SIDE, PATCH_SIDE = 336, 14
NUM_PATCHES = (IMAGE_SIDE // PATCH_SIDE) ** 2
WORDS = ("describe", "the", "scene", "how", "many", "red", "shapes", "are", "there", "at", "top")


@dataclass(frozen=True, slots=True)
class BenchmarkRequest:
    """One image, one question, an answer of exactly so many tokens."""

    image: str  # path
    text: str
    num_new_tokens: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def make_checkpoint(folder: Path) -> Path:
    """Write random weights in bfloat16, once; the same ones on every machine."""
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
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=12,
            num_attention_heads=6,
            image_size=IMAGE_SIDE,
            patch_size=PATCH_SIDE,
            projection_dim=384,
        ),
        text_config=LlamaConfig(
            vocab_size=32_064,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=4,
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


def make_requests(folder: Path, count: int, seed: int = 0) -> list[BenchmarkRequest]:
    """Prompts of 10 to 60 tokens, outputs of 16 to 96, one image of 640 x 480 each."""
    rng, pixels = random.Random(seed), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    requests = []
    for index in range(count):
        path = folder / f"{seed}-{index}.png"
        if not path.is_file():
            small = pixels.integers(0, 256, (15, 20, 3), np.uint8)
            Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(path)
        words = rng.choices(WORDS, k=rng.randint(10, 60))  # each word is a token
        requests.append(BenchmarkRequest(str(path), " ".join(words), rng.randint(16, 96)))
    return requests
