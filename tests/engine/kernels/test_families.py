"""The families through the kernels, as on a GPU: images, adapters, long positions, other layers.

What is recorded is held to what a CUDA graph can be, and the answers to those of plain torch. The
checkpoints have fewer heads and layers than elsewhere: the interpreter takes a millisecond for each
program.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.kernels.strict_recorder import StrictRecorder
from tests.peft_adapters import save_adapter
from tests.tiny_generic import save_tiny_generic
from tests.tiny_llama import save_tiny_llama
from tests.tiny_llava import save_tiny_llava
from tests.tiny_qwen2_vl import save_tiny_qwen2_vl
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.engine import Engine
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.inputs.builder import InputBuilder
from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.models.registry import image_format, read_config
from vlmflow_engine.request import ImageInput, Request
from vlmflow_engine.vl.fetch import fetch_image

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LONG_ROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 20,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + place / 8 for place in range(8)],
        "long_factor": [2.0 + place for place in range(8)],
        "original_max_position_embeddings": 20,
        "factor": 4.0,
    },
    "sliding_window": None,
}
# Whether a step of decoding is recorded, and how a checkpoint is made.
FAMILIES: dict[str, tuple[bool, Callable[[Path], Any]]] = {
    "llava": (
        True,
        lambda folder: save_tiny_llava(
            folder, text_config=TEXT, vision_config={"num_hidden_layers": 2}
        ),
    ),
    "qwen2_vl": (True, lambda folder: save_tiny_qwen2_vl(folder, "qwen2_vl")),
    "qwen2_5_vl": (True, lambda folder: save_tiny_qwen2_vl(folder, "qwen2_5_vl")),
    "mistral": (
        True,
        lambda folder: save_tiny_llama(folder, kind="mistral", sliding_window=20, **TEXT),
    ),
    "qwen3": (True, lambda folder: save_tiny_llama(folder, kind="qwen3", head_dim=24, **TEXT)),
    "phi3": (False, lambda folder: save_tiny_llama(folder, kind="phi3", **TEXT | LONG_ROPE)),
    "generic": (False, lambda folder: save_tiny_generic("llava-onevision", folder)),
}
# Chunks, pages that are too few, tokens that come home a step late, a prefix that comes again.
SMALL = {"max_prefill_token_num": 24, "num_gpu_blocks": None, "async_scheduling": True}


def picture(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def messages(*parts: str | Image.Image) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


class Case:
    """A checkpoint and what it is asked."""

    def __init__(self, folder: Path, *, adapters: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self.adapters = adapters
        self.normalisation, self.rows_per_image = None, 0
        self.prompts: list[tuple[tuple[int, ...], tuple[ImageInput, ...]]] = []
        form = image_format(self.config)
        if form is None:
            lengths = (1, 19, 24, 18)
            self.prompts = [
                (tuple((5 * n + place) % 90 + 3 for place in range(length)), ())
                for n, length in enumerate(lengths)
            ]
            self.prompts.append((self.prompts[2][0][:20], ()))
            return
        builder = InputBuilder(folder, form, fetch_image, max_image_pixels=1 << 28)
        assert builder.image_processor is not None
        self.normalisation = builder.image_processor.normalisation
        self.rows_per_image = builder.max_image_rows
        wide, tall = picture(1, 112, 56), picture(2, 60, 90)
        for asked in (
            messages(wide, "what"),
            messages("how many"),
            messages(wide, "what colour is", tall, "this"),
        ):
            prepared = builder.build(asked)
            self.prompts.append((prepared.token_ids, prepared.images))

    def engine(self, **config: Any) -> Engine:
        asked = {"dtype": "float32", "num_gpu_blocks": 40, "block_size": 16, "max_batch_size": 3}
        asked |= config
        if asked["num_gpu_blocks"] is None:
            asked["num_gpu_blocks"] = max(len(ids) + 9 for ids, _ in self.prompts) // 16 + 2
        return Engine(
            self.folder,
            self.config,
            PytorchEngineConfig(adapters=self.adapters, **asked),
            self.normalisation,
            eos_token_ids=frozenset(),
            rows_per_image=self.rows_per_image,
        )

    def answers(self, engine: Engine) -> dict[int, list[int]]:
        names = [None, *(self.adapters or {})]
        for number, (token_ids, images) in enumerate(self.prompts):
            generation = GenerationConfig(max_new_tokens=3 + 2 * (number % 3))
            engine.add_request(
                Request(
                    number,
                    token_ids,
                    images,
                    generation,
                    seed=0,
                    adapter_name=names[number % len(names)],
                )
            )
        finished: dict[int, list[int]] = {}
        while engine.num_unfinished:
            for sequence in engine.step():
                assert sequence.error is None
                if sequence.finish_reason is not None:
                    finished[sequence.request.request_id] = sequence.output_token_ids
        return finished


def check(case: Case, *, is_recorded: bool, **config: Any) -> Engine:
    expected = case.answers(case.engine())
    with interpreting():
        engine = case.engine(**config)
        recorder, step = StrictRecorder(), engine._runner._decode_step
        assert (step is not None) == is_recorded
        if step is not None:
            step._recorder = recorder
        assert case.answers(engine) == expected
    assert (recorder.num_replayed > 0) == is_recorded
    return engine


def test_an_image_behind_which_positions_shift_is_decoded_on_the_device(tmp_path):
    case = Case(save_tiny_qwen2_vl(tmp_path, "qwen2_vl", text_config={"num_hidden_layers": 1}))
    case.prompts = case.prompts[:1]
    check(case, is_recorded=True, async_scheduling=True)


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, SMALL], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_plain_torch(name, config, tmp_path):
    is_recorded, save = FAMILIES[name]
    save(tmp_path)
    engine = check(Case(tmp_path), is_recorded=is_recorded, **config)
    if config:
        assert engine.stats.num_preemptions > 0 or engine.stats.prefix_hit_tokens > 0


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, SMALL], ids=str)
def test_answers_of_adapters_are_those_of_plain_torch(config, tmp_path):
    folder = save_tiny_llava(tmp_path / "base")
    adapters = {"one": str(save_adapter(tmp_path / "one", seed=1))}
    # Steps without an adapter's request are recorded, beside those that the host lays out.
    check(Case(folder, adapters=adapters), is_recorded=True, **config)
