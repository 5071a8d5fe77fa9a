"""Checkpoints of random weights, made on the device and kept where they cost no disk.

They lie in memory (tmpfs) as far as there is room, which is also what start-up is measured from:
weights in the page cache. The tokenizers are the tests' small ones: an answer's ids beyond them
have no text, and nobody reads it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu.shapes import ModelShape

_MEMORY, _DISK = Path("/dev/shm"), Path("build")
_SPARE_BYTES = 4 << 30  # for the images, and for whoever else lives there


@contextmanager
def temporary_folder(num_bytes: int) -> Iterator[Path]:
    """A folder with room for so much, gone when it is left. Raises SystemExit: there is none."""
    rooms = []
    for parent in (_MEMORY, _DISK):
        parent.mkdir(exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free > num_bytes + _SPARE_BYTES and os.access(parent, os.W_OK):
            with TemporaryDirectory(dir=parent, prefix="vlmflow-") as folder:
                yield Path(folder)
            return
        rooms.append(f"{parent} has {free / 2**30:.0f} GiB")
    raise SystemExit(
        f"a checkpoint of {num_bytes / 2**30:.0f} GiB and {_SPARE_BYTES >> 30} more have no room: "
        f"{' and '.join(rooms)} free"
    )


def make_checkpoint(folder: Path, shape: ModelShape, device: str) -> Path:
    """Write weights in bfloat16, config, tokenizer, processor and chat template."""
    make = {"qwen2_5_vl": _qwen, "llava_next": _llava}[shape.kind]
    model_class, config, image_token_ids, eos, pad = make(folder, shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = model_class._from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():  # an answer that holds an image token cannot be fed back to transformers
        model.lm_head.weight[image_token_ids] = 0
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = pad
    model.save_pretrained(folder, max_shard_size="4GB")
    return folder


def _qwen(folder: Path, shape: ModelShape) -> tuple[Any, Any, list[int], int, int]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from tests.tiny_qwen2_vl import EOS, save_processor, tiny_tokenizer

    save_processor(folder, min_pixels=3136, max_pixels=12_845_056)
    ids = {
        f"{name}_token_id": tiny_tokenizer().convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    pad = tiny_tokenizer().convert_tokens_to_ids("<|endoftext|>")
    config = Qwen2_5_VLConfig(
        text_config=shape.text | {"bos_token_id": pad, "eos_token_id": EOS},
        vision_config=shape.vision,
        tie_word_embeddings=False,
        **ids,
    )
    images = [ids["image_token_id"], ids["video_token_id"]]
    return Qwen2_5_VLForConditionalGeneration, config, images, EOS, pad


def _llava(folder: Path, shape: ModelShape) -> tuple[Any, Any, list[int], int, int]:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    from tests.tiny_llava import tiny_processor

    side, pinpoints = shape.vision["image_size"], [list(pair) for pair in shape.pinpoints]
    processor = tiny_processor()
    tokenizer = copy(processor.tokenizer)
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer=tokenizer,
        patch_size=shape.vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
    ).save_pretrained(folder)
    image = tokenizer.convert_tokens_to_ids("<image>")
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**shape.vision),
        text_config=LlamaConfig(**shape.text, **special),
        image_token_index=image,
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
    )
    return LlavaNextForConditionalGeneration, config, [image], 2, 0


def checkpoint_bytes(shape: ModelShape) -> int:
    """About what the weights take: the decoder's, its embeddings, and a tower of at most 1.5 GB."""
    embeddings = 2 * shape.text["vocab_size"] * shape.text["hidden_size"]
    return int(shape.layer_bytes + embeddings + (3 << 29))


def processor_for_transformers(folder: Path, kind: str) -> Any:
    """transformers' own processor of a checkpoint, without the part for videos."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    if kind != "qwen2_5_vl":
        return AutoProcessor.from_pretrained(folder)
    from tests.tiny_qwen2_vl import ImagesOnlyProcessor

    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    return ImagesOnlyProcessor(
        AutoImageProcessor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        chat_template=template,
    )
