"""A step of decoding can be a CUDA graph: for every kind of decoder it launches the same again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.kernels.strict_recorder import StrictRecorder
from tests.engine.whole_engine import answers, make_engine
from tests.tiny_llama import save_tiny_llama
from vlmflow_engine.engine import Engine
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.request import Request
from vlmflow_engine.runner.decode_step import DecodeStep, batch_sizes

# As few programs as there can be: the interpreter takes a millisecond for each.
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen3": {"head_dim": 16},
}
CONFIGS: list[dict[str, Any]] = [
    {"kind": "llama", "quant_policy": 8},
    {"kind": "mistral", "batch_invariant": True},
    {"kind": "qwen3"},
]
SLOW: list[dict[str, Any]] = [
    {"kind": "llama"},
    {"kind": "llama", "quant_policy": 4},
    {"kind": "llama", "quant_policy": 16},
    {"kind": "mistral"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        kind: save_tiny_llama(tmp_path_factory.mktemp(kind), kind=kind, **SMALL | fields)
        for kind, fields in KINDS.items()
    }


def decode_step(engine: Engine) -> DecodeStep:
    step = engine._runner._decode_step
    assert step is not None
    return step


def requests() -> Iterator[Request]:
    """Their answers begin and end at different steps, over page edges, and find too few pages."""
    for number, length in enumerate((1, 14, 31)):
        prompt = tuple((7 * number + place) % 90 + 3 for place in range(length))
        generation = GenerationConfig(max_new_tokens=2 + number)
        yield Request(number, prompt, (), generation, seed=number)


@pytest.mark.parametrize(
    "config",
    [*CONFIGS, *(pytest.param(config, marks=pytest.mark.slow) for config in SLOW)],
    ids=str,
)
def test_every_step_launches_what_was_recorded(config, folders):
    config = dict(config)
    folder = folders[config.pop("kind")]
    small = config | {"num_gpu_blocks": 4}
    expected = answers(make_engine(folder, **small | {"batch_invariant": False}), requests())
    with interpreting():
        engine = make_engine(folder, async_scheduling=True, **small)
        recorder = StrictRecorder()
        decode_step(engine)._recorder = recorder
        assert answers(engine, requests()) == expected
        assert engine.stats.num_preemptions > 0
    assert recorder.num_recorded >= 2
    assert recorder.num_replayed >= 3


def test_the_largest_batch_is_recorded_first_and_others_when_they_come(folders):
    sizes: list[int] = []

    class Recorder(StrictRecorder):
        def record(self, body):
            replay = super().record(body)
            sizes.append(len(self._outputs[-1]))
            return replay

    with interpreting():
        engine = make_engine(folders["llama"], num_gpu_blocks=4)
        decode_step(engine)._recorder = Recorder()
        engine.add_request(Request(0, (5,), (), GenerationConfig(max_new_tokens=3), seed=0))
        while engine.num_unfinished:
            engine.step()
    assert sizes == [4, 1]


def test_sizes_of_batch_end_with_the_largest():
    assert batch_sizes(1) == (1,)
    assert batch_sizes(5) == (1, 2, 4, 5)
    assert batch_sizes(128)[-3:] == (96, 112, 128)
    assert batch_sizes(256)[-5:] == (128, 160, 192, 224, 256)
    assert batch_sizes(5, is_padded=False) == (1, 2, 3, 4, 5)
