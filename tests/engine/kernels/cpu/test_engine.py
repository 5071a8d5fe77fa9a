"""The whole engine by the C++ kernels, and without them: the same answers in float32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.whole_engine import answers, make_engine
from tests.tiny_llama import save_tiny_llama
from vlmflow_engine.engine import Engine
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.kernels.attention_backend import without_cpp
from vlmflow_engine.kernels.cpu import library
from vlmflow_engine.request import Request

pytestmark = pytest.mark.usefixtures("library")

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen3": {"head_dim": 10},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        kind: save_tiny_llama(tmp_path_factory.mktemp(kind), kind=kind, **fields)
        for kind, fields in KINDS.items()
    }


def requests(**generation: Any) -> Iterator[Request]:
    """Their answers begin and end at different steps."""
    for number, length in enumerate((1, 15, 33, 70, 16, 3)):
        prompt = tuple((7 * number + place) % 90 + 3 for place in range(length))
        config = GenerationConfig(**{"max_new_tokens": 4 + 3 * number} | generation)
        yield Request(number, prompt, (), config, seed=number)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_prefill_token_num": 9},
        {"num_gpu_blocks": 8},  # too few for all: some are sent back
        {"block_size": 7},
        {"async_scheduling": True},
        {"quant_policy": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_plain_torch(kind, config, folders):
    with without_cpp():
        plain = make_engine(folders[kind], **config)
    assert plain.info.attention_backend == "torch"
    engine = make_engine(folders[kind], **config)
    assert engine.info.attention_backend.startswith("c++ ")
    assert answers(engine, requests()) == answers(plain, requests())


def test_sampled_answers_are_those_of_plain_torch(folders):
    sampled = {"do_sample": True, "temperature": 1.3, "top_k": 20, "repetition_penalty": 1.2}
    with without_cpp():
        plain = make_engine(folders["llama"])
    engine = make_engine(folders["llama"])
    expected = answers(plain, requests(**sampled))
    assert answers(engine, requests(**sampled)) == expected


def test_steps_of_decoding_are_not_laid_out_by_the_host(folders, monkeypatch):
    engine = make_engine(folders["llama"])
    runner = engine._runner
    laid_out = []
    launch = runner._launch_mixed
    monkeypatch.setattr(
        runner, "_launch_mixed", lambda plan: laid_out.append(plan.num_tokens) or launch(plan)
    )
    answers(engine, requests())
    assert 0 < len(laid_out) < engine.stats.num_steps / 2


@pytest.mark.parametrize("config", [{"quant_policy": 4}, {"quant_policy": 16}], ids=str)
def test_a_cache_that_has_no_kernel_is_read_in_plain_torch(config, folders):
    engine = make_engine(folders["llama"], **config)
    assert engine.info.attention_backend == "torch"
    assert len(answers(engine, requests())) == 6


def test_float16_has_no_kernel(folders):
    engine = make_engine(folders["llama"], dtype="float16")
    assert engine.info.attention_backend == "torch"


def test_invariance_is_refused_all_the_same(folders):
    with pytest.raises(ConfigError, match="takes the GPU's kernels"):
        make_engine(folders["llama"], batch_invariant=True)


def test_bfloat16_gives_the_logits_of_plain_torch_but_for_rounding(folders):
    def logits(engine: Engine) -> torch.Tensor:
        config = GenerationConfig(max_new_tokens=1, output_logits="all")
        engine.add_request(Request(0, tuple(range(5, 90)), (), config, seed=0))
        (sequence,) = engine.step()
        return engine.take_outputs(sequence, 1).logits

    with without_cpp():
        plain = make_engine(folders["llama"], dtype="bfloat16")
    ours, theirs = logits(make_engine(folders["llama"], dtype="bfloat16")), logits(plain)
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_without_a_compiler_the_engine_works_and_says_so_once(
    folders, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VLMFLOW_CPU_KERNELS_DIR", raising=False)
    library._load.cache_clear()
    try:
        engine = make_engine(folders["llama"])
        assert len(answers(engine, requests())) == 6
        assert make_engine(folders["llama"]).info.attention_backend == "torch"
    finally:
        library._load.cache_clear()
    (record,) = [record for record in caplog.records if "kernels" in record.getMessage()]
    assert "there is no g++ on the PATH" in record.getMessage()
