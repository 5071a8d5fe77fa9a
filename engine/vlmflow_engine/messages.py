"""The names that LMDeploy keeps in its module `messages`."""

from vlmflow_engine.config import (
    PytorchEngineConfig,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
)
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import Response

__all__ = [
    "GenerationConfig",
    "PytorchEngineConfig",
    "Response",
    "SpeculativeConfig",
    "TurbomindEngineConfig",
    "VisionConfig",
]
