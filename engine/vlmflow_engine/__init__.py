"""A batch engine for vision-language models: paged KV cache, continuous batching, no remote code.

from vlmflow_engine import pipeline

with pipeline("examples/shapes/checkpoint") as pipe:
    print(pipe(("How many shapes are there?", "scene.png")).text)
"""

from typing import TYPE_CHECKING, Any

from vlmflow_engine.api import pipeline
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import Response

if TYPE_CHECKING:
    from vlmflow_engine.offline import Pipeline

__version__ = "0.1.0"

__all__ = [
    "GenerationConfig",
    "Pipeline",
    "PytorchEngineConfig",
    "Response",
    "__version__",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    # Pipeline needs torch, so it is loaded when it is asked for.
    if name == "Pipeline":
        from vlmflow_engine.offline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
