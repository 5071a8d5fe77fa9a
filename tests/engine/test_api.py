"""The front door: LMDeploy's names, and what is refused before a model is loaded."""

import subprocess
import sys

import pytest

from vlmflow_engine import (
    GenerationConfig,
    PytorchEngineConfig,
    SpeculativeConfig,
    Tokenizer,
    TurbomindEngineConfig,
    VisionConfig,
    pipeline,
)
from vlmflow_engine.errors import ConfigError

NAMES = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from vlmflow_engine import (
    ChatTemplateConfig, GenerationConfig, PytorchEngineConfig, Response, Session,
    SpeculativeConfig, Tokenizer, TurbomindEngineConfig, VisionConfig, __version__, pipeline,
)
from vlmflow_engine.vl import encode_image_base64, load_image, load_image_from_url, load_video
from vlmflow_engine.vl import pipeline as same
from vlmflow_engine.vl.constants import IMAGE_TOKEN
from vlmflow_engine.messages import GenerationConfig, Response
assert callable(pipeline) and pipeline is same and IMAGE_TOKEN == "<IMAGE_TOKEN>"
"""


def test_names_are_there_without_torch():
    subprocess.run([sys.executable, "-c", NAMES], check=True, timeout=60)


def test_a_script_for_the_other_engine_runs(tiny_llava):
    config = TurbomindEngineConfig(session_len=256, dtype="float32", cache_max_entry_count=0.1)
    vision = VisionConfig(max_batch_size=2)
    with pipeline(str(tiny_llava), backend_config=config, vision_config=vision) as pipe:
        assert (pipe.info.session_len, pipe.info.block_size) == (256, 64)
        assert pipe("red", GenerationConfig(max_new_tokens=3)).generate_token_len == 3


def test_what_cannot_be_had_is_refused_at_once():
    with pytest.raises(ConfigError, match="speculative_config"):
        pipeline("nowhere", speculative_config=SpeculativeConfig("eagle"))
    with pytest.raises(TypeError, match="colour"):
        pipeline("nowhere", colour="red")


def test_remote_code_is_never_run_whoever_trusts_it(tiny_llava, caplog):
    with pipeline(str(tiny_llava), trust_remote_code=True):
        assert "never run" in caplog.text


@pytest.mark.parametrize(
    ("option", "value"),
    [("tp", 2), ("dp", 2), ("cp", 2), ("rope_scaling_factor", 2.0)],
)
def test_what_would_change_the_engine_is_refused(option, value):
    with pytest.raises(ConfigError, match=option):
        TurbomindEngineConfig(**{option: value})


def test_what_means_nothing_here_is_a_line_in_the_log(caplog):
    TurbomindEngineConfig(communicator="cuda-ipc")
    assert "communicator='cuda-ipc' has no effect" in caplog.text


def test_a_number_of_blocks_may_be_given_for_a_share():
    assert PytorchEngineConfig(cache_max_entry_count=100).num_blocks == 100
    assert PytorchEngineConfig(cache_max_entry_count=0.5).num_blocks == 0


def test_a_tokenizer_by_itself_goes_both_ways(tiny_llava):
    tokenizer = Tokenizer(str(tiny_llava))
    ids = tokenizer.encode("a red star")
    assert tokenizer.decode(ids) == "a red star"
    assert tokenizer.encode("a red star", add_bos=False) == ids[1:]
    assert max(ids) < tokenizer.vocab_size
