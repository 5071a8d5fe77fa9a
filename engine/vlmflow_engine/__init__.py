"""A batch engine for vision-language models: paged KV cache, continuous batching, no remote code.

from vlmflow_engine import pipeline

with pipeline("examples/shapes/checkpoint") as pipe:
    print(pipe(("How many shapes are there?", "scene.png")).text)
"""

from typing import TYPE_CHECKING, Any

from vlmflow_engine.api import pipeline
from vlmflow_engine.config import (
    PytorchEngineConfig,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
)
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.inputs.template_config import ChatTemplateConfig
from vlmflow_engine.request import Response
from vlmflow_engine.session import Session

if TYPE_CHECKING:
    from vlmflow_engine.offline import Pipeline
    from vlmflow_engine.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "ChatTemplateConfig",
    "GenerationConfig",
    "Pipeline",
    "PytorchEngineConfig",
    "Response",
    "Session",
    "SpeculativeConfig",
    "Tokenizer",
    "TurbomindEngineConfig",
    "VisionConfig",
    "__version__",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    # What needs torch or a tokenizer is loaded when it is asked for.
    if name == "Pipeline":
        from vlmflow_engine.offline import Pipeline

        return Pipeline
    if name == "Tokenizer":
        from vlmflow_engine.tokenizer import Tokenizer

        return Tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
