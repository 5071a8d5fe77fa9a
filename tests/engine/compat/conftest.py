"""What a user's script begins with: a model loaded with the defaults, and its tokenizer.

The folder asks one question, through public names alone: does a script that was written for
LMDeploy behave the same here? What is different on purpose is in docs/lmdeploy.md.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmflow_engine import Pipeline, PytorchEngineConfig, Tokenizer, pipeline


@pytest.fixture(scope="module")
def pipe(tiny_llava: Path) -> Iterator[Pipeline]:
    """The pipeline of a module; float32, so that equal prompts have equal answers."""
    config = PytorchEngineConfig(dtype="float32", device_type="cpu")
    with pipeline(str(tiny_llava), backend_config=config) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def tokenizer(tiny_llava: Path) -> Tokenizer:
    return Tokenizer(str(tiny_llava))
